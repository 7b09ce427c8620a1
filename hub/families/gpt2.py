"""GPT-2 (Radford et al. 2019), and GPT-3 (arXiv:2005.14165) as far as its graph is published.

Its matrices are [in, out] already. Scores divided by the number of the layer are a variant of
attention a layer.
"""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from arch.norms import NormConfig
from arch.positions import PositionsConfig
from hub.family import Family, part
from hub.keys import Keys, activation_name
from hub.layouts import SAME, Tie, fused, linear, norm, same

L, T = "stack.{i}.", "transformer.h.{i}."


def read(k: Keys) -> ModelConfig:
    D, H, depth = k.first("n_embd", "hidden_size"), k["n_head"], k["n_layer"]
    k.only("reorder_and_upcast_attn", False, True)  # the same numbers
    scale = 0.0 if k.get("scale_attn_weights", True) else 1.0
    base = ModelConfig(
        width=D,
        depth=depth,
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=k.get("layer_norm_epsilon", 1e-5)),
        positions=PositionsConfig(learned=True, length=k.get("n_positions", 1024)),
        head=HeadConfig(tied=k.get("tie_word_embeddings", True)),
        attention=AttentionConfig(
            heads=H, position="none", scale=scale, bias_qkv=True, bias_out=True
        ),
        mlp=MlpConfig(
            width=k.get("n_inner", 4 * D),
            gated=False,
            activation=k.activation("activation_function", "gelu_new"),
            bias=True,
        ),
    )
    if not k.get("scale_attn_by_inverse_layer_idx", False):
        return base
    whole = scale or (D // H) ** -0.5
    return dataclasses.replace(
        base,
        layers=tuple(f"attention@layer{i}+mlp" for i in range(depth)),
        variants={f"layer{i}": {"scale": whole / (i + 1)} for i in range(depth)},
    )


def write(config: ModelConfig) -> dict[str, Any]:
    first, m = part(config, "attention", 0), part(config, "mlp")
    H, _, K = first.shape(config.width)
    last = part(config, "attention", config.depth - 1)
    return {
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": H,
        "vocab_size": config.vocab,
        "n_positions": config.positions.length,
        "n_inner": m.size(config.width),
        "activation_function": activation_name(m.activation),
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
        "scale_attn_weights": (first.scale or K**-0.5) != 1.0,
        "scale_attn_by_inverse_layer_idx": last.scale != first.scale,
    }


def ties(config: ModelConfig) -> tuple[Tie, ...]:
    D = config.width
    qkv = tuple(f"{L}attention.w_{n}" for n in "qkv")
    return (
        same("embed.table", "transformer.wte.weight"),
        same("embed.positions.table", "transformer.wpe.weight"),
        *norm(f"{L}norm_mixer", f"{T}ln_1"),
        *fused(qkv, f"{T}attn.c_attn", (D, D, D), form=SAME),
        *linear(f"{L}attention.w_o", f"{T}attn.c_proj", form=SAME),
        *norm(f"{L}norm_channel", f"{T}ln_2"),
        *linear(f"{L}mlp.w_in", f"{T}mlp.c_fc", form=SAME),
        *linear(f"{L}mlp.w_out", f"{T}mlp.c_proj", form=SAME),
        *norm("stack.norm", "transformer.ln_f"),
        same("head.table", "lm_head.weight"),
    )


GPT2 = Family(
    *("gpt2", "GPT2LMHeadModel", read, write, ties),
    prefix="transformer.",
    ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias", r"h\.\d+\.attn\.(masked_)?bias"),
    copies=(("lm_head.weight", "transformer.wte.weight"),),
)
