"""Maps Phi-3 and Phi-4-mini (arXiv:2404.14219, 2503.01743).

It is LLaMA with fused projections, a window in all layers or none, and longrope; a part of each
head may be rotated.
"""

import dataclasses

from arch import ModelConfig
from hub import rotary
from hub.families.llama import (
    EMBEDDING_MAP,
    HEAD_MAP,
    HF_LAYER,
    LAYER,
    NORM_MAP,
    TIED_EMBEDDING,
    base_to_hf,
    mlp_to_hf,
    read_decoder,
)
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig
from hub.tensor_transforms import TensorMap, fused_linear, linear
from settings.json_types import JsonObject


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Phi-3 config.json."""
    K = hf.get("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
    config = read_decoder(hf, rotary.from_hf(hf, K, rotary_fraction=1.0))
    hf.ignore("max_position_embeddings", "original_max_position_embeddings")
    hf.require_value("attention_bias", False)
    hf.require_value("mlp_bias", False)
    attention = dataclasses.replace(config.attention, window=hf.get("sliding_window", 0))
    return dataclasses.replace(config, attention=attention)


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Phi-3.

    Raises:
        LookupError: if heads are not as wide as the width over their number.
    """
    a, m = find_part(config, "attention"), find_part(config, "mlp")
    H, _, K = a.head_shape(config.width)
    if config.width != H * K:
        raise LookupError("head_dim")
    keys = rotary.to_hf(a.rope, K, rotary_fraction=1.0)
    original = a.rope.original_length or 4096
    return {
        **base_to_hf(config, a),
        **(rotary.as_rope_parameters(keys) if "partial_rotary_factor" in keys else keys),
        **mlp_to_hf(m, config.width),
        "original_max_position_embeddings": original,
        "max_position_embeddings": round(original * a.rope.factor),
        "sliding_window": a.window or None,
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Phi-3, whose projections of one input are one tensor."""
    H, G, K = find_part(config, "attention").head_shape(config.width)
    F = find_part(config, "mlp").inner_dim(config.width)
    qkv = tuple(f"{LAYER}attention.w_{x}" for x in "qkv")
    gate_up = f"{LAYER}mlp.w_gate", f"{LAYER}mlp.w_in"
    return (
        *EMBEDDING_MAP,
        *fused_linear(qkv, f"{HF_LAYER}self_attn.qkv_proj", (H * K, G * K, G * K)),
        *linear(f"{LAYER}attention.w_o", f"{HF_LAYER}self_attn.o_proj"),
        *NORM_MAP,
        *fused_linear(gate_up, f"{HF_LAYER}mlp.gate_up_proj", (F, F)),
        *linear(f"{LAYER}mlp.w_out", f"{HF_LAYER}mlp.down_proj"),
        *HEAD_MAP,
    )


PHI3 = HfFamily(
    *("phi3", "Phi3ForCausalLM", read, write, name_map),
    hf_defaults={"rms_norm_eps": 1e-5},
    hf_ids={"pad_token_id": 32000, "eos_token_id": 32000},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
