"""BLOOM (arXiv:2211.05100): ALiBi, a norm of the embeddings, queries, keys and values by head."""

from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import EmbedConfig, HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from hub.family import Family, part
from hub.keys import Keys
from hub.layouts import Tie, fused, linear, norm, same

L, T = "stack.{i}.", "transformer.h.{i}."
QKV = tuple(f"{L}attention.w_{n}" for n in "qkv")
# How Megatron computed the same, or a length that ALiBi does not need.
FUSIONS: tuple[str, ...] = (
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
)
FUSIONS += ("skip_bias_add", "skip_bias_add_qkv", "offset_alibi", "seq_length")


def read(k: Keys) -> ModelConfig:
    k.unused(*FUSIONS)
    D, after = k.first("hidden_size", "n_embed"), "apply_residual_connection_post_layernorm"
    k.only("n_inner", None, 4 * D)
    return ModelConfig(
        width=D,
        depth=k.first("n_layer", "num_hidden_layers"),
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=k.get("layer_norm_epsilon", 1e-5)),
        block=BlockConfig(wiring="normed" if k.get(after, False) else "pre"),
        embed=EmbedConfig(norm=True),
        head=HeadConfig(tied=k.get("tie_word_embeddings", True)),
        attention=AttentionConfig(
            heads=k.first("n_head", "num_attention_heads"),
            position="alibi",
            bias_qkv=True,
            bias_out=True,
        ),
        mlp=MlpConfig(width=4 * D, gated=False, activation="gelu_bloom", bias=True),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "n_layer": config.depth,
        "n_head": part(config, "attention").heads,
        "vocab_size": config.vocab,
        "layer_norm_epsilon": config.norm.eps,
        "apply_residual_connection_post_layernorm": config.block.wiring == "normed",
        "tie_word_embeddings": config.head.tied,
    }


def ties(config: ModelConfig) -> tuple[Tie, ...]:
    H, _, K = part(config, "attention").shape(config.width)
    return (
        same("embed.table", "transformer.word_embeddings.weight"),
        *norm("embed.norm", "transformer.word_embeddings_layernorm"),
        *norm(f"{L}norm_mixer", f"{T}input_layernorm"),
        *fused(QKV, f"{T}self_attention.query_key_value", (K, K, K), groups=H),
        *linear(f"{L}attention.w_o", f"{T}self_attention.dense"),
        *norm(f"{L}norm_channel", f"{T}post_attention_layernorm"),
        *linear(f"{L}mlp.w_in", f"{T}mlp.dense_h_to_4h"),
        *linear(f"{L}mlp.w_out", f"{T}mlp.dense_4h_to_h"),
        *norm("stack.norm", "transformer.ln_f"),
        same("head.table", "lm_head.weight"),
    )


BLOOM = Family(
    *("bloom", "BloomForCausalLM", read, write, ties),
    prefix="transformer.",
    copies=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    positions="count",
)
