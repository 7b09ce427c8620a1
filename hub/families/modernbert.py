"""ModernBERT (arXiv:2412.13663): rotary positions, GeGLU, two layers of three with a window.

The first layer has no norm before its attention: the embedding has one.
"""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import EmbedConfig, HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from hub import rotary, windows
from hub.family import Family, every, part, shortest
from hub.keys import Keys, activation_name
from hub.layouts import Tie, fused, linear, norm, same
from hub.windows import FULL, WINDOW

L, T = "stack.{i}.", "model.layers.{i}."
ASIDE: tuple[str, ...] = (
    "max_position_embeddings",
    "layer_norm_eps",
    "classifier_pooling",
    "embedding_dropout",
)
ASIDE += ("mlp_dropout", "sparse_pred_ignore_index", "deterministic_flash_attn")
ASIDE += ("reference_compile", "repad_logits_with_grad", "sparse_prediction")


def read(k: Keys) -> ModelConfig:
    D, H, depth = k["hidden_size"], k["num_attention_heads"], k["num_hidden_layers"]
    k.only("position_embedding_type", "absolute", "rope")  # as files have it; neither is read
    every, bias = k.get("global_attn_every_n_layers", 3), k.get("attention_bias", False)
    mixers = windows.mixers(k, [i % every > 0 for i in range(depth)])
    k.unused(*ASIDE)
    old = {
        FULL: {"rope_theta": k.get("global_rope_theta", 160000.0)},
        WINDOW: {"rope_theta": k.get("local_rope_theta", None) or 10000.0},
    }
    ropes = k.get("rope_parameters", old)
    whole, local = (
        AttentionConfig(
            heads=H, rope=rotary.of(k, ropes[kind], D // H, D // H), bias_qkv=bias, bias_out=bias
        )
        for kind in (FULL, WINDOW)
    )
    layers = tuple(f"{mixer}+mlp" for mixer in mixers)
    return ModelConfig(
        width=D,
        depth=depth,
        first=layers[:1],
        layers=shortest(layers[1:] or layers),
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=k.get("norm_eps", 1e-5), bias=k.get("norm_bias", False)),
        embed=EmbedConfig(norm=True),
        block=BlockConfig(bare_first=True),
        head=HeadConfig(
            tied=k.get("tie_word_embeddings", True),
            bias=k.get("decoder_bias", True),
            transform=True,
            transform_activation=k.activation("classifier_activation", "gelu"),
            transform_bias=k.get("classifier_bias", False),
        ),
        attention=whole,
        local_attention=dataclasses.replace(local, window=k["local_attention"]),
        mlp=MlpConfig(
            width=k["intermediate_size"],
            activation=k.activation("hidden_activation", "gelu"),
            bias=k.get("mlp_bias", False),
        ),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    parts = every(config, "attention")
    local = next((p for p in parts if p.window), config.local_attention)
    whole = next((p for p in parts if not p.window), config.attention)
    m = part(config, "mlp")
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab,
        "num_attention_heads": whole.heads,
        "intermediate_size": m.size(config.width),
        "hidden_activation": activation_name(m.activation),
        "attention_bias": whole.bias_qkv,
        "mlp_bias": m.bias,
        "norm_bias": config.norm.bias,
        "norm_eps": config.norm.eps,
        "classifier_activation": activation_name(config.head.transform_activation),
        "classifier_bias": config.head.transform_bias,
        "decoder_bias": config.head.bias,
        "tie_word_embeddings": config.head.tied,
        "local_attention": local.window,
        "layer_types": windows.written(parts),
        "global_rope_theta": whole.rope.theta,
        "local_rope_theta": local.rope.theta,
    }


def usual(config: ModelConfig) -> dict[str, Any]:
    """The reference's own, 50283, must be a row of the table."""
    return {} if config.vocab > 50283 else {"pad_token_id": 0}


def ties(config: ModelConfig) -> tuple[Tie, ...]:
    D, F = config.width, part(config, "mlp").size(config.width)
    qkv = tuple(f"{L}attention.w_{n}" for n in "qkv")
    return (
        same("embed.table", "model.embeddings.tok_embeddings.weight"),
        *norm("embed.norm", "model.embeddings.norm"),
        *norm(f"{L}norm_mixer", f"{T}attn_norm"),
        *fused(qkv, f"{T}attn.Wqkv", (D, D, D)),
        *linear(f"{L}attention.w_o", f"{T}attn.Wo"),
        *norm(f"{L}norm_channel", f"{T}mlp_norm"),
        *fused((f"{L}mlp.w_gate", f"{L}mlp.w_in"), f"{T}mlp.Wi", (F, F)),
        *linear(f"{L}mlp.w_out", f"{T}mlp.Wo"),
        *norm("stack.norm", "model.final_norm"),
        *linear("head.w_transform", "head.dense"),
        *norm("head.norm", "head.norm"),
        same("head.table", "decoder.weight"),
        same("head.bias", "decoder.bias"),
    )


MODERNBERT = Family(
    *("modernbert", "ModernBertForMaskedLM", read, write, ties),
    prefix="model.",
    copies=(("decoder.weight", "model.embeddings.tok_embeddings.weight"),),
    usual=usual,
    task="masked",
    padding_sees=True,
)
