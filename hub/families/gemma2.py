"""Gemma-2 (arXiv:2408.00118): norms on both sides, soft caps, every other layer with a window."""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.block import BlockConfig
from arch.embedding import EmbedConfig, HeadConfig
from arch.norms import NormConfig
from hub import windows
from hub.families.llama import ATTENTION, EMBEDDING, HEAD, TIED, L, T, attention, mlp, words
from hub.family import Family, every, part, shortest
from hub.keys import Keys, activation_name
from hub.layouts import Tie, norm

TIES = (
    *EMBEDDING,
    *ATTENTION,
    *norm(f"{L}norm_mixer", f"{T}input_layernorm"),
    *norm(f"{L}norm_mixed", f"{T}post_attention_layernorm"),
    *norm(f"{L}norm_channel", f"{T}pre_feedforward_layernorm"),
    *norm(f"{L}norm_channelled", f"{T}post_feedforward_layernorm"),
    *mlp(f"{T}mlp"),
    *HEAD,
)


def read(k: Keys) -> ModelConfig:
    D, depth, bias = k["hidden_size"], k["num_hidden_layers"], k.get("attention_bias", False)
    k.only("use_bidirectional_attention", None, False)
    k.unused("max_position_embeddings", "hidden_act", "cache_implementation")
    mixers = windows.mixers(k, [i % 2 == 0 for i in range(depth)])
    whole = dataclasses.replace(
        attention(k),
        scale=k.get("query_pre_attn_scalar", 256) ** -0.5,
        softcap=k.get("attn_logit_softcapping", 0.0),
        bias_qkv=bias,
        bias_out=bias,
    )
    act = k.activation("hidden_activation", "gelu_pytorch_tanh")
    return ModelConfig(
        width=D,
        depth=depth,
        layers=shortest(tuple(f"{mixer}+mlp" for mixer in mixers)),
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=k.get("rms_norm_eps", 1e-6), plus_one=True),
        block=BlockConfig(wiring="sandwich"),
        embed=EmbedConfig(scale=D**0.5),
        head=HeadConfig(
            tied=k.get("tie_word_embeddings", True), cap=k.get("final_logit_softcapping", 0.0)
        ),
        attention=whole,
        local_attention=dataclasses.replace(whole, window=k.get("sliding_window", 4096)),
        mlp=dataclasses.replace(ModelConfig().mlp, width=k["intermediate_size"], activation=act),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    parts = every(config, "attention")
    a, m = part(config, "attention"), part(config, "mlp")
    K = a.shape(config.width)[2]
    scalar = round((a.scale or K**-0.5) ** -2, 9)
    if scalar % 1:
        raise LookupError("query_pre_attn_scalar is a whole number")
    return {
        **words(config, a),
        "intermediate_size": m.size(config.width),
        "hidden_activation": activation_name(m.activation),
        "attention_bias": a.bias_qkv,
        "query_pre_attn_scalar": int(scalar),
        "attn_logit_softcapping": a.softcap or None,
        "final_logit_softcapping": config.head.cap or None,
        "layer_types": windows.written(parts),
        "sliding_window": max(p.window for p in parts) or 4096,  # the reference's, if none has one
    }


def ties(config: ModelConfig) -> tuple[Tie, ...]:
    return TIES


GEMMA2 = Family(
    *("gemma2", "Gemma2ForCausalLM", read, write, ties),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    prefix="model.",
    copies=TIED,
)
