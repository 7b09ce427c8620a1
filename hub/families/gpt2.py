"""Maps GPT-2 (Radford et al. 2019), and GPT-3 (arXiv:2005.14165) as far as it is published.

The matrices in the files are [in, out]. If attention scores are divided by the number of the layer,
each layer has its own variant of attention.
"""

import dataclasses

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.layers.embedding import HeadConfig
from arch.layers.norms import NormConfig
from arch.layers.positions import PositionsConfig
from arch.mixers.attention import AttentionConfig
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import IDENTITY, TensorMap, fused_linear, identity, linear, norm
from settings.json_types import JsonObject

LAYER, HF_LAYER = "stack.{i}.", "transformer.h.{i}."


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a GPT-2 config.json."""
    D, H, depth = hf.get_any("n_embd", "hidden_size"), hf["n_head"], hf["n_layer"]
    hf.require_value("reorder_and_upcast_attn", False, True)  # both compute the same
    scale = 0.0 if hf.get("scale_attn_weights", True) else 1.0
    base = ModelConfig(
        width=D,
        depth=depth,
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig("layer", eps=hf.get("layer_norm_epsilon", 1e-5)),
        positions=PositionsConfig(learned=True, max_length=hf.get("n_positions", 1024)),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", True)),
        attention=AttentionConfig(
            heads=H, position_encoding="none", scale=scale, bias_qkv=True, bias_out=True
        ),
        mlp=MlpConfig(
            width=hf.get("n_inner", 4 * D),
            gated=False,
            activation=hf.activation("activation_function", "gelu_new"),
            bias=True,
        ),
    )
    if not hf.get("scale_attn_by_inverse_layer_idx", False):
        return base
    base_scale = scale or (D // H) ** -0.5
    return dataclasses.replace(
        base,
        layers=tuple(f"attention@layer{i}+mlp" for i in range(depth)),
        variants={f"layer{i}": {"scale": base_scale / (i + 1)} for i in range(depth)},
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for GPT-2."""
    first, m = find_part(config, "attention", 0), find_part(config, "mlp")
    H, _, K = first.head_shape(config.width)
    last = find_part(config, "attention", config.depth - 1)
    return {
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": H,
        "vocab_size": config.vocab_size,
        "n_positions": config.positions.max_length,
        "n_inner": m.inner_dim(config.width),
        "activation_function": activation_name(m.activation),
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
        "scale_attn_weights": (first.scale or K**-0.5) != 1.0,
        "scale_attn_by_inverse_layer_idx": last.scale != first.scale,
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of GPT-2."""
    D = config.width
    qkv = tuple(f"{LAYER}attention.w_{n}" for n in "qkv")
    return (
        identity("embed.table", "transformer.wte.weight"),
        identity("embed.positions.table", "transformer.wpe.weight"),
        *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}ln_1"),
        *fused_linear(qkv, f"{HF_LAYER}attn.c_attn", (D, D, D), transform=IDENTITY),
        *linear(f"{LAYER}attention.w_o", f"{HF_LAYER}attn.c_proj", transform=IDENTITY),
        *norm(f"{LAYER}norm_channel", f"{HF_LAYER}ln_2"),
        *linear(f"{LAYER}mlp.w_in", f"{HF_LAYER}mlp.c_fc", transform=IDENTITY),
        *linear(f"{LAYER}mlp.w_out", f"{HF_LAYER}mlp.c_proj", transform=IDENTITY),
        *norm("stack.norm", "transformer.ln_f"),
        identity("head.table", "lm_head.weight"),
    )


GPT2 = HfFamily(
    *("gpt2", "GPT2LMHeadModel", read, write, name_map),
    hf_ids={"bos_token_id": 50256, "eos_token_id": 50256},
    prefix="transformer.",
    ignored_tensors=(r"transformer\.h\.\d+\.attn\.(masked_)?bias", r"h\.\d+\.attn\.(masked_)?bias"),
    tied_tensors=(("lm_head.weight", "transformer.wte.weight"),),
)
