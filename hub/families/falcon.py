"""Falcon (arXiv:2311.16867): 7B, 40B and 180B, Falcon2-11B, and the sequential RW models.

Rows of the fused matrix are G times [H/G queries, a key, a value]: with G = 1 multi-query as in 7B,
with G = H by head as in RW.
"""

from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.rope import RopeConfig
from hub import rotary
from hub.family import Family, part
from hub.keys import Keys, activation_name
from hub.layouts import Tie, fused, linear, norm, same

L, T = "stack.{i}.", "transformer.h.{i}."
QKV = tuple(f"{L}attention.w_{n}" for n in "qkv")


def read(k: Keys) -> ModelConfig:
    D, H = k["hidden_size"], k.first("num_attention_heads", "n_head")
    new, bias = k.get("new_decoder_architecture", False), k.get("bias", False)
    k.only("parallel_attn", True, *(() if new else (False,)))
    parallel = new or k.get("parallel_attn", True)
    norms = k.get("num_ln_in_parallel_attn", 2 if new else 1)
    if norms not in ((1, 2) if new else (1,)):
        raise k.refused("num_ln_in_parallel_attn", "known: 1, and 2 of the new architecture")
    shared = k.get("multi_query", True) and not new
    G = k.get("num_kv_heads", H) if new else 1 if shared else H
    k.unused("num_kv_heads", "n_head_kv", "max_position_embeddings")
    alibi = k.get("alibi", False)
    k.unused(*(("rope_theta", "rope_scaling", "rope_parameters") if alibi else ()))
    return ModelConfig(
        width=D,
        depth=k.first("num_hidden_layers", "n_layer"),
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=k.get("layer_norm_epsilon", 1e-5)),
        block=BlockConfig(wiring="parallel" if parallel else "pre", norms=norms),
        head=HeadConfig(tied=k.get("tie_word_embeddings", True)),
        attention=AttentionConfig(
            heads=H,
            kv_heads=0 if G == H else G,
            position="alibi" if alibi else "rope",
            alibi_rounded=alibi,
            bias_qkv=bias,
            bias_out=bias,
            rope=RopeConfig() if alibi else rotary.rope(k, D // H),
        ),
        mlp=MlpConfig(
            width=k.get("ffn_hidden_size", 4 * D),
            gated=False,
            activation=k.activation("activation", "gelu"),
            bias=bias,
        ),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), part(config, "mlp")
    (H, G, K), norms = a.shape(config.width), config.block.norms
    parallel = config.block.wiring == "parallel"
    new = parallel and (norms == 2 or 1 < G < H)
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab,
        "num_attention_heads": H,
        "num_kv_heads": G,
        "ffn_hidden_size": m.size(config.width),
        "activation": activation_name(m.activation),
        "bias": m.bias,
        "alibi": a.position == "alibi",
        "parallel_attn": parallel,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": norms if new else None,
        "multi_query": G == 1 or new,
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
        **({} if a.position == "alibi" else rotary.written(a.rope, K)),
    }


def ties(config: ModelConfig) -> tuple[Tie, ...]:
    H, G, K = part(config, "attention").shape(config.width)
    parallel = config.block.wiring == "parallel"
    two = ("ln_attn", "ln_mlp") if parallel and config.block.norms == 2 else ()
    mixer, channel = two or ("input_layernorm", "post_attention_layernorm")
    return (
        same("embed.table", "transformer.word_embeddings.weight"),
        *norm(f"{L}norm_mixer", f"{T}{mixer}"),
        *fused(QKV, f"{T}self_attention.query_key_value", (H // G * K, K, K), groups=G),
        *linear(f"{L}attention.w_o", f"{T}self_attention.dense"),
        *norm(f"{L}norm_channel", f"{T}{channel}"),
        *linear(f"{L}mlp.w_in", f"{T}mlp.dense_h_to_4h"),
        *linear(f"{L}mlp.w_out", f"{T}mlp.dense_4h_to_h"),
        *norm("stack.norm", "transformer.ln_f"),
        same("head.table", "lm_head.weight"),
    )


FALCON = Family(
    *("falcon", "FalconForCausalLM", read, write, ties),
    prefix="transformer.",
    copies=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    positions="count",
)
