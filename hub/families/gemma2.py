"""Maps Gemma-2 (arXiv:2408.00118) and the text model of Gemma-3 (arXiv:2503.19786).

Both have norms before and after each sublayer. Gemma-2 has soft caps, and a window in every other
layer. Gemma-3 has norms of queries and keys, and a window and rotary positions of its own in five
of six layers.
"""

import dataclasses

from arch import ModelConfig
from arch.block import BlockConfig
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.norms import NormConfig
from arch.mixers.attention import AttentionConfig
from hub import layer_types, rotary
from hub.families.llama import (
    ATTENTION_MAP,
    EMBEDDING_MAP,
    HEAD_MAP,
    HF_LAYER,
    LAYER,
    TIED_EMBEDDING,
    base_to_hf,
    decoder_to_hf,
    mlp_map,
    read_attention,
)
from hub.family import HfFamily, all_parts, find_part, shortest_period
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, norm, qk_norms
from settings.json_types import JsonObject

NAME_MAP = (
    *EMBEDDING_MAP,
    *ATTENTION_MAP,
    *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}input_layernorm"),
    *norm(f"{LAYER}norm_post_mixer", f"{HF_LAYER}post_attention_layernorm"),
    *norm(f"{LAYER}norm_channel", f"{HF_LAYER}pre_feedforward_layernorm"),
    *norm(f"{LAYER}norm_post_channel", f"{HF_LAYER}post_feedforward_layernorm"),
    *mlp_map(f"{HF_LAYER}mlp"),
    *qk_norms("attention", "self_attn"),
    *HEAD_MAP,
)


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Gemma-2 config.json."""
    attention = dataclasses.replace(
        read_attention(hf), softcap=hf.get("attn_logit_softcapping", 0.0)
    )
    return _read(hf, attention, attention, 2)


def read_gemma3(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Gemma-3 config.json; its reference has no cap of scores."""
    hf.ignore("attn_logit_softcapping")
    period = hf.get("sliding_window_pattern", hf.get("_sliding_window_pattern", 6))
    K, theta = hf.get("head_dim", 256), hf.get("rope_local_base_freq", 10000.0)
    ropes = rotary.by_layer_type(hf, K, sliding={"rope_theta": theta})
    full, sliding = (
        dataclasses.replace(
            read_attention(hf, ropes[kind]),
            qk_norm="head",
            qk_norm_eps=hf.get("rms_norm_eps", 1e-6),
            qk_norm_unit_offset=True,
        )
        for kind in (layer_types.FULL, layer_types.SLIDING)
    )
    return _read(hf, full, sliding, period)


def _read(
    hf: HfConfig, full: AttentionConfig, sliding: AttentionConfig, period: int
) -> ModelConfig:
    """Reads what both families share; every layer but each `period`-th has a window."""
    D, depth, bias = hf["hidden_size"], hf["num_hidden_layers"], hf.get("attention_bias", False)
    hf.require_value("use_bidirectional_attention", None, False)
    hf.ignore("max_position_embeddings", "hidden_act", "cache_implementation")
    mixers = layer_types.from_hf(hf, [(i + 1) % period != 0 for i in range(depth)])
    full, sliding = (
        dataclasses.replace(
            part,
            scale=hf.get("query_pre_attn_scalar", 256) ** -0.5,
            bias_qkv=bias,
            bias_out=bias,
        )
        for part in (full, sliding)
    )
    act = hf.activation("hidden_activation", "gelu_pytorch_tanh")
    return ModelConfig(
        width=D,
        depth=depth,
        layers=shortest_period(tuple(f"{mixer}+mlp" for mixer in mixers)),
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=hf.get("rms_norm_eps", 1e-6), unit_offset=True),
        block=BlockConfig(wiring="sandwich"),
        embed=EmbedConfig(scale=D**0.5),
        head=HeadConfig(
            tied=hf.get("tie_word_embeddings", True),
            logit_softcap=hf.get("final_logit_softcapping", 0.0),
        ),
        attention=full,
        local_attention=dataclasses.replace(sliding, window=hf.get("sliding_window", 4096)),
        mlp=dataclasses.replace(ModelConfig().mlp, width=hf["intermediate_size"], activation=act),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Gemma-2."""
    a = find_part(config, "attention")
    return {
        **decoder_to_hf(config, a),
        **_to_hf(config),
        "attn_logit_softcapping": a.softcap or None,
    }


def write_gemma3(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Gemma-3."""
    parts = all_parts(config, "attention")
    return {
        **base_to_hf(config, parts[0]),
        "head_dim": parts[0].head_shape(config.width)[2],
        **_to_hf(config),
        **rotary.by_layer_type_to_hf(parts, config.width),
    }


def _to_hf(config: ModelConfig) -> JsonObject:
    """Returns the keys that both families share.

    Raises:
        LookupError: if the scale of attention is not the root of an integer's inverse.
    """
    parts = all_parts(config, "attention")
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    K = a.head_shape(config.width)[2]
    scalar = round(a.score_scale(K) ** -2, 9)
    if scalar % 1:
        raise LookupError("query_pre_attn_scalar must be an integer")
    return {
        "intermediate_size": m.inner_dim(config.width),
        "hidden_activation": activation_name(m.activation),
        "attention_bias": a.bias_qkv,
        "query_pre_attn_scalar": int(scalar),
        "final_logit_softcapping": config.head.logit_softcap or None,
        "layer_types": layer_types.to_hf(parts),
        "sliding_window": max(p.window for p in parts) or 4096,  # the reference requires one
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Gemma-2 and Gemma-3."""
    return NAME_MAP


GEMMA2 = HfFamily(
    *("gemma2", "Gemma2ForCausalLM", read, write, name_map),
    hf_defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
GEMMA3 = HfFamily(
    *("gemma3_text", "Gemma3ForCausalLM", read_gemma3, write_gemma3, name_map),
    hf_defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "rope_theta": 1e6,
    },
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
