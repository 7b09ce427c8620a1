"""Maps gpt-oss (arXiv:2508.10925).

It has sinks, a window in every other layer, YaRN, biases everywhere, and experts whose gate is
clipped. The matrices of all experts of a layer are one tensor [e, in, out], in which the columns of
gate and up alternate.
"""

import dataclasses

from arch import ModelConfig
from arch.channels.moe import MoeConfig
from arch.layers.activations import CLIP
from hub import layer_types, rotary
from hub.families.llama import (
    ATTENTION_MAP,
    EMBEDDING_MAP,
    HEAD_MAP,
    HF_LAYER,
    LAYER,
    NORM_MAP,
    TIED_EMBEDDING,
    base_to_hf,
    read_decoder,
)
from hub.family import HfFamily, all_parts, find_part, shortest_period
from hub.hf_config import HfConfig
from hub.tensor_transforms import IDENTITY, TensorMap, identity, linear
from settings.json_types import JsonObject

EXPERTS, HF_EXPERTS = f"{LAYER}moe", f"{HF_LAYER}mlp.experts"


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a gpt-oss config.json."""
    config, bias = read_decoder(hf), hf.get("attention_bias", True)
    hf.ignore("max_position_embeddings", "router_aux_loss_coef", "initial_context_length")
    hf.ignore("experts_per_token", "hidden_act")
    hf.require_value("swiglu_limit", CLIP)
    hf.require_value("swiglu_alpha", 1.702)
    attention = dataclasses.replace(config.attention, sinks=True, bias_qkv=bias, bias_out=bias)
    mixers = layer_types.from_hf(hf, [i % 2 == 0 for i in range(config.depth)])
    return dataclasses.replace(
        config,
        layers=shortest_period(tuple(f"{mixer}+moe" for mixer in mixers)),
        attention=attention,
        local_attention=dataclasses.replace(attention, window=hf.get("sliding_window", 128)),
        moe=MoeConfig(
            num_experts=hf["num_local_experts"],
            top_k=hf["num_experts_per_tok"],
            width=hf["intermediate_size"],
            activation="clipped_swish",
            bias=True,
            router_bias=True,
        ),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for gpt-oss."""
    parts, m = all_parts(config, "attention"), find_part(config, "moe")
    K = parts[0].head_shape(config.width)[2]
    return {
        **base_to_hf(config, parts[0]),
        "head_dim": K,
        **rotary.to_hf(parts[0].rope, K),
        "intermediate_size": m.inner_dim(config.width),
        "attention_bias": parts[0].bias_qkv,
        "layer_types": layer_types.to_hf(parts),
        "sliding_window": max(part.window for part in parts) or 128,
        "num_local_experts": m.num_experts,
        "num_experts_per_tok": m.top_k,
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of gpt-oss."""
    F = find_part(config, "moe").inner_dim(config.width)
    fused = {
        "gate_up_proj": (f"{EXPERTS}.w_gate", f"{EXPERTS}.w_in"),
        "gate_up_proj_bias": (f"{EXPERTS}.b_gate", f"{EXPERTS}.b_in"),
    }
    return (
        *EMBEDDING_MAP,
        *ATTENTION_MAP,
        identity(f"{LAYER}attention.sinks", f"{HF_LAYER}self_attn.sinks"),
        *NORM_MAP,
        *linear(f"{EXPERTS}.w_router", f"{HF_LAYER}mlp.router"),
        *(
            TensorMap(params, f"{HF_EXPERTS}.{name}", IDENTITY, (1, 1), F)
            for name, params in fused.items()
        ),
        identity(f"{EXPERTS}.w_out", f"{HF_EXPERTS}.down_proj"),
        identity(f"{EXPERTS}.b_out", f"{HF_EXPERTS}.down_proj_bias"),
        *HEAD_MAP,
    )


GPT_OSS = HfFamily(
    *("gpt_oss", "GptOssForCausalLM", read, write, name_map),
    hf_defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
    },
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
