"""Maps ModernBERT (arXiv:2412.13663).

It has rotary positions, GeGLU, and a window in two of three layers. The first layer has no norm
before its attention, because the embedding has one.
"""

import dataclasses

from arch import ModelConfig
from arch.block import BlockConfig
from arch.channels.mlp import MlpConfig
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.norms import NormConfig
from arch.mixers.attention import AttentionConfig
from hub import layer_types, rotary
from hub.family import HfFamily, all_parts, find_part, shortest_period
from hub.hf_config import HfConfig, activation_name
from hub.layer_types import FULL, SLIDING
from hub.tensor_transforms import TensorMap, fused_linear, identity, linear, norm
from settings.json_types import JsonObject

LAYER, HF_LAYER = "stack.{i}.", "model.layers.{i}."
IGNORED_KEYS: tuple[str, ...] = (
    "max_position_embeddings",
    "layer_norm_eps",
    "classifier_pooling",
    "embedding_dropout",
)
IGNORED_KEYS += ("mlp_dropout", "sparse_pred_ignore_index", "deterministic_flash_attn")
IGNORED_KEYS += ("reference_compile", "repad_logits_with_grad", "sparse_prediction")


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a ModernBERT config.json."""
    D, H, depth = hf["hidden_size"], hf["num_attention_heads"], hf["num_hidden_layers"]
    hf.require_value(
        "position_embedding_type", "absolute", "rope"
    )  # files have either value, and the reference reads neither
    period, bias = hf.get("global_attn_every_n_layers", 3), hf.get("attention_bias", False)
    mixers = layer_types.from_hf(hf, [i % period > 0 for i in range(depth)])
    hf.ignore(*IGNORED_KEYS)
    default = {
        FULL: {"rope_theta": hf.get("global_rope_theta", 160000.0)},
        SLIDING: {"rope_theta": hf.get("local_rope_theta", None) or 10000.0},
    }
    ropes = hf.get("rope_parameters", default)
    full, local = (
        AttentionConfig(
            heads=H,
            rope=rotary.from_rope_parameters(hf, ropes[kind], D // H, D // H),
            bias_qkv=bias,
            bias_out=bias,
        )
        for kind in (FULL, SLIDING)
    )
    layers = tuple(f"{mixer}+mlp" for mixer in mixers)
    return ModelConfig(
        width=D,
        depth=depth,
        first_layers=layers[:1],
        layers=shortest_period(layers[1:] or layers),
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=hf.get("norm_eps", 1e-5), bias=hf.get("norm_bias", False)),
        embed=EmbedConfig(norm=True),
        block=BlockConfig(skip_first_norm=True),
        head=HeadConfig(
            tied=hf.get("tie_word_embeddings", True),
            bias=hf.get("decoder_bias", True),
            mlm_transform=True,
            mlm_transform_activation=hf.activation("classifier_activation", "gelu"),
            mlm_transform_bias=hf.get("classifier_bias", False),
        ),
        attention=full,
        local_attention=dataclasses.replace(local, window=hf["local_attention"]),
        mlp=MlpConfig(
            width=hf["intermediate_size"],
            activation=hf.activation("hidden_activation", "gelu"),
            bias=hf.get("mlp_bias", False),
        ),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for ModernBERT."""
    parts = all_parts(config, "attention")
    local = next((p for p in parts if p.window), config.local_attention)
    full = next((p for p in parts if not p.window), config.attention)
    m = find_part(config, "mlp")
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab_size,
        "num_attention_heads": full.heads,
        "intermediate_size": m.inner_dim(config.width),
        "hidden_activation": activation_name(m.activation),
        "attention_bias": full.bias_qkv,
        "mlp_bias": m.bias,
        "norm_bias": config.norm.bias,
        "norm_eps": config.norm.eps,
        "classifier_activation": activation_name(config.head.mlm_transform_activation),
        "classifier_bias": config.head.mlm_transform_bias,
        "decoder_bias": config.head.bias,
        "tie_word_embeddings": config.head.tied,
        "local_attention": local.window,
        "layer_types": layer_types.to_hf(parts),
        "global_rope_theta": full.rope.theta,
        "local_rope_theta": local.rope.theta,
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of ModernBERT."""
    D, F = config.width, find_part(config, "mlp").inner_dim(config.width)
    qkv = tuple(f"{LAYER}attention.w_{n}" for n in "qkv")
    return (
        identity("embed.table", "model.embeddings.tok_embeddings.weight"),
        *norm("embed.norm", "model.embeddings.norm"),
        *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}attn_norm"),
        *fused_linear(qkv, f"{HF_LAYER}attn.Wqkv", (D, D, D)),
        *linear(f"{LAYER}attention.w_o", f"{HF_LAYER}attn.Wo"),
        *norm(f"{LAYER}norm_channel", f"{HF_LAYER}mlp_norm"),
        *fused_linear((f"{LAYER}mlp.w_gate", f"{LAYER}mlp.w_in"), f"{HF_LAYER}mlp.Wi", (F, F)),
        *linear(f"{LAYER}mlp.w_out", f"{HF_LAYER}mlp.Wo"),
        *norm("stack.norm", "model.final_norm"),
        *linear("head.w_transform", "head.dense"),
        *norm("head.norm", "head.norm"),
        identity("head.table", "decoder.weight"),
        identity("head.bias", "decoder.bias"),
    )


MODERNBERT = HfFamily(
    *("modernbert", "ModernBertForMaskedLM", read, write, name_map),
    prefix="model.",
    tied_tensors=(("decoder.weight", "model.embeddings.tok_embeddings.weight"),),
    hf_ids={"pad_token_id": 50283, "bos_token_id": 50281, "eos_token_id": 50282},
    task="masked",
    padding_matters=True,
)
