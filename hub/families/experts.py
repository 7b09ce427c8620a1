"""LLaMA's frame with experts: Mixtral (arXiv:2401.04088), OLMoE (arXiv:2409.02060), Qwen2-MoE
(qwenlm.github.io/blog/qwen-moe) and Qwen3-MoE (arXiv:2505.09388).

Files hold one tensor an expert.
"""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.mlp import MlpConfig
from arch.moe import MoeConfig
from hub import windows
from hub.families.llama import (
    ATTENTION,
    EMBEDDING,
    HEAD,
    NORMS,
    TIED,
    L,
    T,
    decoder,
    mlp,
    mlp_words,
    words,
)
from hub.family import Family, every, own, part, shortest
from hub.keys import Keys, activation_name
from hub.layouts import LINEAR, Tie, linear

QWEN = f"{T}mlp"


def experts(theirs: str, gate: str, up: str, down: str) -> tuple[Tie, ...]:
    """One tensor for each matrix of each expert."""
    return (
        Tie((f"{L}moe.w_gate",), f"{theirs}.{gate}.weight", LINEAR),
        Tie((f"{L}moe.w_in",), f"{theirs}.{up}.weight", LINEAR),
        Tie((f"{L}moe.w_out",), f"{theirs}.{down}.weight", LINEAR),
    )


FRAME = (*EMBEDDING, *ATTENTION, *NORMS, *HEAD)
MIXTRAL_TIES = (
    *FRAME,
    *linear(f"{L}moe.w_router", f"{T}block_sparse_moe.gate"),
    *experts(T + "block_sparse_moe.experts.{e}", "w1", "w3", "w2"),
)
QWEN_TIES = (
    *FRAME,
    *mlp(QWEN),
    *linear(f"{L}moe.w_router", f"{QWEN}.gate"),
    *experts(QWEN + ".experts.{e}", "gate_proj", "up_proj", "down_proj"),
    *linear(f"{L}moe.shared.w_gate", f"{QWEN}.shared_expert.gate_proj"),
    *linear(f"{L}moe.shared.w_in", f"{QWEN}.shared_expert.up_proj"),
    *linear(f"{L}moe.shared.w_out", f"{QWEN}.shared_expert.down_proj"),
    *linear(f"{L}moe.w_shared", f"{QWEN}.shared_expert_gate"),
    Tie((f"{L}attention.norm_q",), f"{T}self_attn.q_norm.weight"),
    Tie((f"{L}attention.norm_k",), f"{T}self_attn.k_norm.weight"),
)


def read_mixtral(k: Keys) -> ModelConfig:
    config = decoder(k)
    k.unused("max_position_embeddings", "router_aux_loss_coef", "router_jitter_noise")
    return _changed(
        config,
        layers=("attention+moe",),
        attention=_window(k, config),
        moe=_moe(k, k["num_local_experts"], config.mlp.width),
    )


def write_mixtral(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), part(config, "moe")
    return {
        **words(config, a),
        **mlp_words(MlpConfig(m.size(config.width), activation=m.activation), config.width),
        "num_local_experts": m.experts,
        "num_experts_per_tok": m.top_k,
        "sliding_window": a.window or None,
    }


def read_olmoe(k: Keys) -> ModelConfig:
    config, bias = decoder(k), k.get("attention_bias", False)
    k.unused("max_position_embeddings", "router_aux_loss_coef")
    attention = dataclasses.replace(
        config.attention,
        qk_norm="full",
        qk_norm_eps=config.norm.eps,
        clip=k.get("clip_qkv", 0.0),
        bias_qkv=bias,
        bias_out=bias,
    )
    moe = _moe(k, k["num_experts"], config.mlp.width)
    moe = dataclasses.replace(moe, normalize=k.get("norm_topk_prob", False))
    return _changed(config, layers=("attention+moe",), attention=attention, moe=moe)


def write_olmoe(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), part(config, "moe")
    return {
        **words(config, a),
        **mlp_words(MlpConfig(m.size(config.width), activation=m.activation), config.width),
        "num_experts": m.experts,
        "num_experts_per_tok": m.top_k,
        "norm_topk_prob": m.normalize,
        "clip_qkv": a.clip or None,
        "attention_bias": a.bias_qkv,
    }


def read_qwen2(k: Keys) -> ModelConfig:
    """Of the first layers, every other one has a window."""
    most = k.get("max_window_layers", 28)
    windowed = [i % 2 == 0 and i < most for i in range(k["num_hidden_layers"])]
    attention = dataclasses.replace(decoder(k).attention, bias_qkv=k.get("qkv_bias", True))
    config = _qwen(k, attention, windowed)
    wide = k["shared_expert_intermediate_size"]
    moe = dataclasses.replace(config.moe, shared=1, shared_width=wide, shared_gate=True)
    return dataclasses.replace(config, moe=moe)


def read_qwen3(k: Keys) -> ModelConfig:
    """All layers have a window, or none."""
    config, bias = decoder(k), k.get("attention_bias", False)
    k.unused("max_window_layers")
    attention = dataclasses.replace(
        config.attention,
        qk_norm="head",
        qk_norm_eps=config.norm.eps,
        bias_qkv=bias,
        bias_out=bias,
    )
    return _qwen(k, attention, [True] * config.depth)


def write_qwen2(config: ModelConfig) -> dict[str, Any]:
    a, m = part(config, "attention"), own(config, "moe")
    return _qwen_words(config) | {
        "qkv_bias": a.bias_qkv,
        "shared_expert_intermediate_size": m.common(config.width).size(config.width),
        "layer_types": windows.written(every(config, "attention")),
    }


def write_qwen3(config: ModelConfig) -> dict[str, Any]:
    return _qwen_words(config) | {"attention_bias": part(config, "attention").bias_qkv}


def _qwen(k: Keys, attention: AttentionConfig, windowed: list[bool]) -> ModelConfig:
    """Both Qwens: some layers may be dense, by number; `windowed` ones have a window where
    windows are on."""
    config, on = decoder(k), k.get("use_sliding_window", False)
    k.unused("max_position_embeddings", "router_aux_loss_coef")
    step, dense = k.get("decoder_sparse_step", 1), k.get("mlp_only_layers", [])
    sparse = [i not in dense and (i + 1) % step == 0 for i in range(config.depth)]
    mixers = windows.mixers(k, [on and one for one in windowed])
    window = k.get("sliding_window", 0)
    if set(mixers) != {"attention"} and not (on and window):
        raise k.refused("layer_types", "set use_sliding_window and sliding_window too")
    layers = [f"{m}+{'moe' if one else 'mlp'}" for m, one in zip(mixers, sparse, strict=True)]
    count = k.first("num_experts", "num_local_experts")
    moe = _moe(k, count, k["moe_intermediate_size"])
    return dataclasses.replace(
        config,
        layers=shortest(tuple(layers)),
        attention=attention,
        local_attention=dataclasses.replace(attention, window=window),
        moe=dataclasses.replace(moe, normalize=k.get("norm_topk_prob", False)),
    )


def _qwen_words(config: ModelConfig) -> dict[str, Any]:
    parts, m, D = every(config, "attention"), own(config, "moe"), config.width
    a, window = parts[0], max(p.window for p in parts)
    dense = [i for i, e in enumerate(config.plan().entries()) if e.channel == "mlp"]
    wide = part(config, "mlp").size(D) if dense else config.mlp.size(D)
    return {
        **words(config, a),
        "intermediate_size": wide,
        "hidden_act": activation_name(m.activation),
        "num_experts": m.experts,
        "num_experts_per_tok": m.top_k,
        "moe_intermediate_size": m.size(D),
        "norm_topk_prob": m.normalize,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
        "use_sliding_window": window > 0,
        "sliding_window": window or None,
    }


def _moe(k: Keys, experts: int, width: int) -> MoeConfig:
    return MoeConfig(
        experts=experts,
        top_k=k["num_experts_per_tok"],
        width=width,
        activation=k.activation("hidden_act", "silu"),
    )


def _window(k: Keys, config: ModelConfig) -> Any:
    return dataclasses.replace(config.attention, window=k.get("sliding_window", 0))


def _changed(config: ModelConfig, *, layers: tuple[str, ...], attention: Any, moe: MoeConfig):
    return dataclasses.replace(config, layers=layers, attention=attention, moe=moe)


def ties_mixtral(config: ModelConfig) -> tuple[Tie, ...]:
    return MIXTRAL_TIES


def ties_qwen(config: ModelConfig) -> tuple[Tie, ...]:
    return QWEN_TIES


MIXTRAL = Family(
    *("mixtral", "MixtralForCausalLM", read_mixtral, write_mixtral, ties_mixtral),
    defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    prefix="model.",
    copies=TIED,
)
OLMOE = Family(
    *("olmoe", "OlmoeForCausalLM", read_olmoe, write_olmoe, ties_qwen),
    defaults={"rms_norm_eps": 1e-5},
    prefix="model.",
    copies=TIED,
)
QWEN2_MOE = Family(
    *("qwen2_moe", "Qwen2MoeForCausalLM", read_qwen2, write_qwen2, ties_qwen),
    defaults={"num_key_value_heads": 16, "sliding_window": 4096},
    prefix="model.",
    copies=TIED,
)
QWEN3_MOE = Family(
    *("qwen3_moe", "Qwen3MoeForCausalLM", read_qwen3, write_qwen3, ties_qwen),
    defaults={"num_key_value_heads": 4, "sliding_window": 4096},
    prefix="model.",
    copies=TIED,
)
