"""LLaMA 1 to 3 (arXiv:2302.13971, 2307.09288, 2407.21783), Vicuna, XGen, and Mistral.

Vicuna (lmsys.org/blog/2023-03-30-vicuna) is LLaMA trained on chats, at 16k with linear rope;
XGen-7B (arXiv:2309.03450) LLaMA with rows of 8192. Mistral (arXiv:2310.06825) adds a window.
"""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from hub import rotary
from hub.family import Family, part
from hub.keys import Keys, activation_name
from hub.layouts import Tie, linear, norm, same

EMBEDDING = (same("embed.table", "model.embed_tokens.weight"),)
HEAD = (*norm("stack.norm", "model.norm"), same("head.table", "lm_head.weight"))
L, T = "stack.{i}.", "model.layers.{i}."
ATTENTION = (
    *linear(f"{L}attention.w_q", f"{T}self_attn.q_proj"),
    *linear(f"{L}attention.w_k", f"{T}self_attn.k_proj"),
    *linear(f"{L}attention.w_v", f"{T}self_attn.v_proj"),
    *linear(f"{L}attention.w_o", f"{T}self_attn.o_proj"),
)
NORMS = (
    *norm(f"{L}norm_mixer", f"{T}input_layernorm"),
    *norm(f"{L}norm_channel", f"{T}post_attention_layernorm"),
)
TIED = (("lm_head.weight", "model.embed_tokens.weight"),)


def mlp(theirs: str) -> tuple[Tie, ...]:
    """A gated MLP below `theirs`."""
    return (
        *linear(f"{L}mlp.w_gate", f"{theirs}.gate_proj"),
        *linear(f"{L}mlp.w_in", f"{theirs}.up_proj"),
        *linear(f"{L}mlp.w_out", f"{theirs}.down_proj"),
    )


TIES = (*EMBEDDING, *ATTENTION, *NORMS, *mlp(f"{T}mlp"), *HEAD)


def attention(k: Keys) -> AttentionConfig:
    """Of all families with LLaMA's words for it; window and biases apart."""
    D, H = k["hidden_size"], k["num_attention_heads"]
    G, K = k.get("num_key_value_heads", H), k.get("head_dim", D // H)
    same_heads, same_width = G == H, K * H == D
    return AttentionConfig(
        heads=H,
        kv_heads=0 if same_heads else G,
        head_width=0 if same_width else K,
        rope=rotary.rope(k, K),
    )


def decoder(k: Keys) -> ModelConfig:
    """The frame of all families with LLaMA's words for it."""
    return ModelConfig(
        width=k["hidden_size"],
        depth=k["num_hidden_layers"],
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=k.get("rms_norm_eps", 1e-6)),
        head=HeadConfig(tied=k.get("tie_word_embeddings", False)),
        attention=attention(k),
        mlp=MlpConfig(width=k["intermediate_size"], activation=k.activation("hidden_act", "silu")),
    )


def frame_words(config: ModelConfig, a: AttentionConfig) -> dict[str, Any]:
    """What `decoder` reads, but of the channel, the width of heads and their rotation."""
    H, G, _ = a.shape(config.width)
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab,
        "num_attention_heads": H,
        "num_key_value_heads": G,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def words(config: ModelConfig, a: AttentionConfig) -> dict[str, Any]:
    """What `decoder` reads, but of the channel."""
    K = a.shape(config.width)[2]
    return {**frame_words(config, a), "head_dim": K, **rotary.written(a.rope, K)}


def mlp_words(m: MlpConfig, D: int) -> dict[str, Any]:
    return {"intermediate_size": m.size(D), "hidden_act": activation_name(m.activation)}


def read_llama(k: Keys) -> ModelConfig:
    config, bias = decoder(k), k.get("attention_bias", False)
    k.unused("max_position_embeddings")
    return dataclasses.replace(
        config,
        attention=dataclasses.replace(config.attention, bias_qkv=bias, bias_out=bias),
        mlp=dataclasses.replace(config.mlp, bias=k.get("mlp_bias", False)),
    )


def write_llama(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), part(config, "mlp")
    keys = {**words(config, a), **mlp_words(m, config.width)}
    return keys | {"attention_bias": a.bias_qkv, "mlp_bias": m.bias}


def read_mistral(k: Keys) -> ModelConfig:
    config = decoder(k)
    k.unused("max_position_embeddings")
    window = k.get("sliding_window", 0)
    return dataclasses.replace(
        config, attention=dataclasses.replace(config.attention, window=window)
    )


def write_mistral(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), part(config, "mlp")
    keys = {**words(config, a), **mlp_words(m, config.width)}
    return keys | {"sliding_window": a.window or None}


def ties(config: ModelConfig) -> tuple[Tie, ...]:
    return TIES


LLAMA = Family(
    "llama", "LlamaForCausalLM", read_llama, write_llama, ties, prefix="model.", copies=TIED
)
MISTRAL = Family(
    *("mistral", "MistralForCausalLM", read_mistral, write_mistral, ties),
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    prefix="model.",
    copies=TIED,
)
