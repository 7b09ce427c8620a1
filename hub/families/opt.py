"""OPT (arXiv:2205.01068): learned positions from row 2 on; OPT-350m with projections and post-norm.

Its LayerNorm has eps 1e-5 whatever its config says; the last one is there only before the head of a
pre-norm model.
"""

from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.block import BlockConfig
from arch.embedding import EmbedConfig, HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.positions import PositionsConfig
from hub.family import Family, part
from hub.keys import Keys, activation_name
from hub.layouts import Tie, linear, norm, same

L, T, BASE = "stack.{i}.", "model.decoder.layers.{i}.", "model.decoder."


def read(k: Keys) -> ModelConfig:
    D, bias = k["hidden_size"], k.get("enable_bias", True)
    W, before = k.get("word_embed_proj_dim", D), k.get("do_layer_norm_before", True)
    bare = k.get("_remove_final_layer_norm", False)
    return ModelConfig(
        width=D,
        depth=k["num_hidden_layers"],
        vocab=k["vocab_size"],
        vocab_multiple=1,
        final_norm=before and not bare,
        norm=NormConfig("layer", eps=1e-5, affine=k.get("layer_norm_elementwise_affine", True)),
        block=BlockConfig(wiring="pre" if before else "post"),
        embed=EmbedConfig(width=0 if W == D else W),
        positions=PositionsConfig(learned=True, length=k["max_position_embeddings"], offset=2),
        head=HeadConfig(tied=k.get("tie_word_embeddings", True)),
        attention=AttentionConfig(
            heads=k["num_attention_heads"], position="none", bias_qkv=bias, bias_out=bias
        ),
        mlp=MlpConfig(
            width=k["ffn_dim"],
            gated=False,
            activation=k.activation("activation_function", "relu"),
            bias=bias,
        ),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), part(config, "mlp")
    before = config.block.wiring == "pre"
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab,
        "word_embed_proj_dim": config.embed.width or config.width,
        "num_attention_heads": a.heads,
        "ffn_dim": m.size(config.width),
        "activation_function": activation_name(m.activation),
        "enable_bias": m.bias,
        "max_position_embeddings": config.positions.length,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "layer_norm_elementwise_affine": config.norm.affine,
        "tie_word_embeddings": config.head.tied,
    }


TIES = (
    same("embed.table", f"{BASE}embed_tokens.weight"),
    same("embed.positions.table", f"{BASE}embed_positions.weight"),
    *linear("embed.w_in", f"{BASE}project_in"),
    *norm(f"{L}norm_mixer", f"{T}self_attn_layer_norm"),
    *linear(f"{L}attention.w_q", f"{T}self_attn.q_proj"),
    *linear(f"{L}attention.w_k", f"{T}self_attn.k_proj"),
    *linear(f"{L}attention.w_v", f"{T}self_attn.v_proj"),
    *linear(f"{L}attention.w_o", f"{T}self_attn.out_proj"),
    *norm(f"{L}norm_channel", f"{T}final_layer_norm"),
    *linear(f"{L}mlp.w_in", f"{T}fc1"),
    *linear(f"{L}mlp.w_out", f"{T}fc2"),
    *norm("stack.norm", f"{BASE}final_layer_norm"),
    *linear("head.w_out", f"{BASE}project_out"),
    same("head.table", "lm_head.weight"),
)


def ties(config: ModelConfig) -> tuple[Tie, ...]:
    return TIES


OPT = Family(
    *("opt", "OPTForCausalLM", read, write, ties),
    prefix="model.",
    copies=(("lm_head.weight", f"{BASE}embed_tokens.weight"),),
    positions="count",
)
