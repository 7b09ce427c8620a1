"""Maps OLMo 2 (arXiv:2501.00656) and OLMo 3 (allenai.org/olmo3).

A norm stands behind each branch instead of before it, and queries and keys are normed over all
heads. OLMo 3 has a window in three of four layers, and scales rotary positions in the others only.
"""

import dataclasses

from arch import ModelConfig
from arch.block import BlockConfig
from hub import layer_types, rotary
from hub.families.llama import (
    ATTENTION_MAP,
    EMBEDDING_MAP,
    HEAD_MAP,
    HF_LAYER,
    LAYER,
    TIED_EMBEDDING,
    base_to_hf,
    mlp_map,
    mlp_to_hf,
    read_decoder,
)
from hub.family import HfFamily, all_parts, find_part, shortest_period
from hub.hf_config import HfConfig
from hub.tensor_transforms import TensorMap, norm, qk_norms
from settings.json_types import JsonObject

BEHIND = BlockConfig(wiring="branch_norm")
NAME_MAP = (
    *EMBEDDING_MAP,
    *ATTENTION_MAP,
    *qk_norms("attention", "self_attn"),
    *norm(f"{LAYER}norm_post_mixer", f"{HF_LAYER}post_attention_layernorm"),
    *norm(f"{LAYER}norm_post_channel", f"{HF_LAYER}post_feedforward_layernorm"),
    *mlp_map(f"{HF_LAYER}mlp"),
    *HEAD_MAP,
)


def read_olmo2(hf: HfConfig) -> ModelConfig:
    """Returns the model config of an OLMo 2 config.json."""
    return dataclasses.replace(with_norms(read_decoder(hf), hf), block=BEHIND)


def write_olmo2(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for OLMo 2."""
    a = find_part(config, "attention")
    return {**_to_hf(config), **rotary.to_hf(a.rope, a.head_shape(config.width)[2])}


def read_olmo3(hf: HfConfig) -> ModelConfig:
    """Returns the model config of an OLMo 3 config.json.

    Files of version 4 have one scaling, which the layers with a window do not use.
    """
    K = hf["hidden_size"] // hf["num_attention_heads"]
    ropes = rotary.by_layer_type(hf, K, sliding={"rope_theta": hf.get("rope_theta", 5e5)})
    config = with_norms(read_decoder(hf, ropes[layer_types.FULL]), hf)
    mixers = layer_types.from_hf(hf, [(i + 1) % 4 != 0 for i in range(config.depth)])
    return dataclasses.replace(
        config,
        layers=shortest_period(tuple(f"{mixer}+mlp" for mixer in mixers)),
        block=BEHIND,
        local_attention=dataclasses.replace(
            config.attention,
            rope=ropes[layer_types.SLIDING],
            window=hf.get("sliding_window", 4096),
        ),
    )


def write_olmo3(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for OLMo 3."""
    parts = all_parts(config, "attention")
    return {
        **_to_hf(config),
        **rotary.by_layer_type_to_hf(parts, config.width),
        "layer_types": layer_types.to_hf(parts),
        "sliding_window": max(part.window for part in parts) or 4096,
    }


def with_norms(config: ModelConfig, hf: HfConfig) -> ModelConfig:
    """Returns a decoder whose queries and keys are normed over all heads."""
    hf.ignore("max_position_embeddings")
    bias = hf.get("attention_bias", False)
    attention = dataclasses.replace(
        config.attention,
        qk_norm="full",
        qk_norm_eps=config.norm.eps,
        bias_qkv=bias,
        bias_out=bias,
    )
    return dataclasses.replace(config, attention=attention)


def _to_hf(config: ModelConfig) -> JsonObject:
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    keys = {**base_to_hf(config, a), **mlp_to_hf(m, config.width)}
    return keys | {"attention_bias": a.bias_qkv}


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of OLMo 2 and OLMo 3."""
    return NAME_MAP


OLMO2 = HfFamily(
    *("olmo2", "Olmo2ForCausalLM", read_olmo2, write_olmo2, name_map),
    hf_defaults={"rms_norm_eps": 1e-5},
    hf_ids={"eos_token_id": 50279},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
OLMO3 = HfFamily(
    *("olmo3", "Olmo3ForCausalLM", read_olmo3, write_olmo3, name_map),
    hf_defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 5e5},
    hf_ids={"eos_token_id": 50279},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
