"""Maps families that combine the decoder of LLaMA with experts.

These are Mixtral (arXiv:2401.04088), OLMoE (arXiv:2409.02060), Qwen2-MoE
(qwenlm.github.io/blog/qwen-moe) and Qwen3-MoE (arXiv:2505.09388). Each matrix of each expert is a
tensor of its own.
"""

import dataclasses

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.channels.moe import MoeConfig
from arch.mixers.attention import AttentionConfig
from hub import layer_types
from hub.families.llama import (
    ATTENTION_MAP,
    EMBEDDING_MAP,
    HEAD_MAP,
    HF_LAYER,
    LAYER,
    NORM_MAP,
    TIED_EMBEDDING,
    decoder_to_hf,
    mlp_map,
    mlp_to_hf,
    read_decoder,
)
from hub.family import HfFamily, all_parts, find_part, part_or_default, shortest_period
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TRANSPOSED, TensorMap, linear, qk_norms
from settings.json_types import JsonObject

QWEN_MLP = f"{HF_LAYER}mlp"


def experts_map(hf_prefix: str, gate: str, up: str, down: str) -> tuple[TensorMap, ...]:
    """Returns one tensor name for each matrix of each expert."""
    return (
        TensorMap((f"{LAYER}moe.w_gate",), f"{hf_prefix}.{gate}.weight", TRANSPOSED),
        TensorMap((f"{LAYER}moe.w_in",), f"{hf_prefix}.{up}.weight", TRANSPOSED),
        TensorMap((f"{LAYER}moe.w_out",), f"{hf_prefix}.{down}.weight", TRANSPOSED),
    )


BASE_MAP = (*EMBEDDING_MAP, *ATTENTION_MAP, *NORM_MAP, *HEAD_MAP)
MIXTRAL_NAME_MAP = (
    *BASE_MAP,
    *linear(f"{LAYER}moe.w_router", f"{HF_LAYER}block_sparse_moe.gate"),
    *experts_map(HF_LAYER + "block_sparse_moe.experts.{e}", "w1", "w3", "w2"),
)
QWEN_CHANNEL_MAP = (
    *mlp_map(QWEN_MLP),
    *linear(f"{LAYER}moe.w_router", f"{QWEN_MLP}.gate"),
    *experts_map(QWEN_MLP + ".experts.{e}", "gate_proj", "up_proj", "down_proj"),
    *linear(f"{LAYER}moe.shared.w_gate", f"{QWEN_MLP}.shared_expert.gate_proj"),
    *linear(f"{LAYER}moe.shared.w_in", f"{QWEN_MLP}.shared_expert.up_proj"),
    *linear(f"{LAYER}moe.shared.w_out", f"{QWEN_MLP}.shared_expert.down_proj"),
    *linear(f"{LAYER}moe.w_shared_gate", f"{QWEN_MLP}.shared_expert_gate"),
)
QWEN_NAME_MAP = (*BASE_MAP, *QWEN_CHANNEL_MAP, *qk_norms("attention", "self_attn"))


def read_mixtral(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Mixtral config.json."""
    config = read_decoder(hf)
    hf.ignore("max_position_embeddings", "router_aux_loss_coef", "router_jitter_noise")
    return _with_moe(
        config,
        layers=("attention+moe",),
        attention=_read_windowed_attention(hf, config),
        moe=_read_moe(hf, hf["num_local_experts"], config.mlp.width),
    )


def write_mixtral(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Mixtral."""
    a, m = find_part(config, "attention"), find_part(config, "moe")
    return {
        **decoder_to_hf(config, a),
        **mlp_to_hf(MlpConfig(m.inner_dim(config.width), activation=m.activation), config.width),
        "num_local_experts": m.num_experts,
        "num_experts_per_tok": m.top_k,
        "sliding_window": a.window or None,
    }


def read_olmoe(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a OLMoE config.json."""
    config, bias = read_decoder(hf), hf.get("attention_bias", False)
    hf.ignore("max_position_embeddings", "router_aux_loss_coef")
    attention = dataclasses.replace(
        config.attention,
        qk_norm="full",
        qk_norm_eps=config.norm.eps,
        qkv_clip=hf.get("clip_qkv", 0.0),
        bias_qkv=bias,
        bias_out=bias,
    )
    moe = _read_moe(hf, hf["num_experts"], config.mlp.width)
    moe = dataclasses.replace(moe, normalize_weights=hf.get("norm_topk_prob", False))
    return _with_moe(config, layers=("attention+moe",), attention=attention, moe=moe)


def write_olmoe(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for OLMoE."""
    a, m = find_part(config, "attention"), find_part(config, "moe")
    return {
        **decoder_to_hf(config, a),
        **mlp_to_hf(MlpConfig(m.inner_dim(config.width), activation=m.activation), config.width),
        "num_experts": m.num_experts,
        "num_experts_per_tok": m.top_k,
        "norm_topk_prob": m.normalize_weights,
        "clip_qkv": a.qkv_clip or None,
        "attention_bias": a.bias_qkv,
    }


def read_qwen2(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Qwen2-MoE config.json.

    Every other layer among the first `max_window_layers` has a window.
    """
    max_layers = hf.get("max_window_layers", 28)
    has_window = [i % 2 == 0 and i < max_layers for i in range(hf["num_hidden_layers"])]
    attention = dataclasses.replace(read_decoder(hf).attention, bias_qkv=hf.get("qkv_bias", True))
    config = _read_qwen(hf, attention, has_window)
    return dataclasses.replace(config, moe=with_shared_expert(hf, config.moe))


def read_qwen3(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Qwen3-MoE config.json, with windows in all layers or none."""
    config, bias = read_decoder(hf), hf.get("attention_bias", False)
    hf.ignore("max_window_layers")
    attention = dataclasses.replace(
        config.attention,
        qk_norm="head",
        qk_norm_eps=config.norm.eps,
        bias_qkv=bias,
        bias_out=bias,
    )
    return _read_qwen(hf, attention, [True] * config.depth)


def write_qwen2(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Qwen2-MoE."""
    a, m = find_part(config, "attention"), part_or_default(config, "moe")
    return _qwen_to_hf(config) | {
        "qkv_bias": a.bias_qkv,
        **shared_expert_to_hf(m, config.width),
        "layer_types": layer_types.to_hf(all_parts(config, "attention")),
    }


def write_qwen3(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Qwen3-MoE."""
    return _qwen_to_hf(config) | {"attention_bias": find_part(config, "attention").bias_qkv}


def read_qwen_channels(hf: HfConfig, depth: int) -> tuple[tuple[str, ...], MoeConfig]:
    """Returns the channel of each layer, of which listed layers are dense, and the experts."""
    hf.ignore("router_aux_loss_coef")
    step, dense = hf.get("decoder_sparse_step", 1), hf.get("mlp_only_layers", list[int]())
    is_moe = [i not in dense and (i + 1) % step == 0 for i in range(depth)]
    count = hf.get_any("num_experts", "num_local_experts")
    moe = _read_moe(hf, count, hf["moe_intermediate_size"])
    moe = dataclasses.replace(moe, normalize_weights=hf.get("norm_topk_prob", False))
    return tuple("moe" if has_experts else "mlp" for has_experts in is_moe), moe


def qwen_channels_to_hf(config: ModelConfig) -> JsonObject:
    """Returns the keys of `read_qwen_channels`, and those of the dense layers."""
    m, D = part_or_default(config, "moe"), config.width
    specs = config.layer_layout().layer_specs()
    dense = [i for i, spec in enumerate(specs) if spec.channel == "mlp"]
    return {
        "intermediate_size": part_or_default(config, "mlp").inner_dim(D),
        "hidden_act": activation_name(m.activation),
        "num_experts": m.num_experts,
        "num_experts_per_tok": m.top_k,
        "moe_intermediate_size": m.inner_dim(D),
        "norm_topk_prob": m.normalize_weights,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
    }


def with_shared_expert(hf: HfConfig, moe: MoeConfig) -> MoeConfig:
    """Returns experts beside one that all tokens use, times a gate."""
    width = hf["shared_expert_intermediate_size"]
    return dataclasses.replace(moe, shared_experts=1, shared_width=width, shared_gate=True)


def shared_expert_to_hf(moe: MoeConfig, D: int) -> JsonObject:
    """Returns the key of `with_shared_expert`."""
    return {"shared_expert_intermediate_size": moe.shared_experts_config(D).inner_dim(D)}


def _read_qwen(hf: HfConfig, attention: AttentionConfig, has_window: list[bool]) -> ModelConfig:
    """Reads both Qwens: listed layers are dense, and windows need `use_sliding_window`."""
    config, use_window = read_decoder(hf), hf.get("use_sliding_window", False)
    hf.ignore("max_position_embeddings")
    channels, moe = read_qwen_channels(hf, config.depth)
    mixers = layer_types.from_hf(hf, [use_window and windowed for windowed in has_window])
    window = hf.get("sliding_window", 0)
    if set(mixers) != {"attention"} and not (use_window and window):
        raise hf.unsupported_error("layer_types", "set use_sliding_window and sliding_window too")
    return dataclasses.replace(
        config,
        layers=shortest_period(tuple(map("+".join, zip(mixers, channels, strict=True)))),
        attention=attention,
        local_attention=dataclasses.replace(attention, window=window),
        moe=moe,
    )


def _qwen_to_hf(config: ModelConfig) -> JsonObject:
    parts = all_parts(config, "attention")
    window = max(p.window for p in parts)
    return {
        **decoder_to_hf(config, parts[0]),
        **qwen_channels_to_hf(config),
        "use_sliding_window": window > 0,
        "sliding_window": window or None,
    }


def _read_moe(hf: HfConfig, experts: int, width: int) -> MoeConfig:
    return MoeConfig(
        num_experts=experts,
        top_k=hf["num_experts_per_tok"],
        width=width,
        activation=hf.activation("hidden_act", "silu"),
    )


def _read_windowed_attention(hf: HfConfig, config: ModelConfig) -> AttentionConfig:
    return dataclasses.replace(config.attention, window=hf.get("sliding_window", 0))


def _with_moe(
    config: ModelConfig, *, layers: tuple[str, ...], attention: AttentionConfig, moe: MoeConfig
) -> ModelConfig:
    return dataclasses.replace(config, layers=layers, attention=attention, moe=moe)


def name_map_mixtral(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Mixtral."""
    return MIXTRAL_NAME_MAP


def name_map_qwen(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of OLMoE, Qwen2-MoE and Qwen3-MoE."""
    return QWEN_NAME_MAP


MIXTRAL = HfFamily(
    *("mixtral", "MixtralForCausalLM", read_mixtral, write_mixtral, name_map_mixtral),
    hf_defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
OLMOE = HfFamily(
    *("olmoe", "OlmoeForCausalLM", read_olmoe, write_olmoe, name_map_qwen),
    hf_defaults={"rms_norm_eps": 1e-5},
    hf_ids={"eos_token_id": 50279},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
QWEN2_MOE = HfFamily(
    *("qwen2_moe", "Qwen2MoeForCausalLM", read_qwen2, write_qwen2, name_map_qwen),
    hf_defaults={"num_key_value_heads": 16, "sliding_window": 4096},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
QWEN3_MOE = HfFamily(
    *("qwen3_moe", "Qwen3MoeForCausalLM", read_qwen3, write_qwen3, name_map_qwen),
    hf_defaults={"num_key_value_heads": 4, "sliding_window": 4096},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
