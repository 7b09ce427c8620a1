"""Maps DeepSeek-V2 (arXiv:2405.04434) and DeepSeek-V3 (arXiv:2412.19437).

Both have latent attention and, after a few dense layers, experts beside shared experts. V2 routes
by a softmax over all experts, V3 by sigmoids with a bias for the selection alone.
"""

import dataclasses
import math

from arch import ModelConfig
from arch.channels.moe import MoeConfig
from arch.layers.embedding import HeadConfig
from arch.layers.norms import NormConfig
from arch.mixers.latent_attention import LatentAttentionConfig
from hub import rotary
from hub.families.experts import experts_map
from hub.families.llama import (
    EMBEDDING_MAP,
    HEAD_MAP,
    HF_LAYER,
    LAYER,
    NORM_MAP,
    TIED_EMBEDDING,
    mlp_map,
)
from hub.family import HfFamily, find_part, part_or_default
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, fused_linear, identity, linear
from settings.json_types import JsonObject

MIXER = "latent_attention"
HF_ATTENTION, HF_MLP = f"{HF_LAYER}self_attn", f"{HF_LAYER}mlp"
IGNORED_KEYS: tuple[str, ...] = ("max_position_embeddings", "head_dim", "qk_head_dim", "ep_size")
IGNORED_KEYS += ("aux_loss_alpha", "seq_aux", "num_nextn_predict_layers", "router_aux_loss_coef")
BIAS_RATE = 1e-3  # Of the selection bias, if training continues (arXiv:2412.19437, section 4.2).


def read_latent_attention(hf: HfConfig) -> LatentAttentionConfig:
    """Reads latent attention, without its rotary positions."""
    hf.require_value("num_key_value_heads", hf["num_attention_heads"])
    return LatentAttentionConfig(
        heads=hf["num_attention_heads"],
        kv_rank=hf["kv_lora_rank"],
        query_rank=hf.get("q_lora_rank", 0),
        nope_dim=hf["qk_nope_head_dim"],
        rope_dim=hf["qk_rope_head_dim"],
        value_dim=hf["v_head_dim"],
        bias=hf.get("attention_bias", False),
    )


def latent_attention_to_hf(a: LatentAttentionConfig, D: int) -> JsonObject:
    """Returns the keys of latent attention, without those of its rotary positions."""
    r, dn, dr, dv = a.sizes(D)
    return {
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.heads,
        "kv_lora_rank": r,
        "q_lora_rank": a.query_rank or None,
        "qk_nope_head_dim": dn,
        "qk_rope_head_dim": dr,
        "v_head_dim": dv,
        "attention_bias": a.bias,
    }


def read_v2(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a DeepSeek-V2 config.json."""
    method = hf.get("topk_method", "greedy")
    hf.require_value("topk_method", "greedy", "group_limited_greedy")
    hf.require_value("scoring_func", "softmax")
    hf.require_value("norm_topk_prob", False)
    groups, top_groups = hf.get("n_group", 1), hf.get("topk_group", 0)
    is_limited = method == "group_limited_greedy"
    moe = MoeConfig(
        n_groups=groups if is_limited else 1,
        top_groups=top_groups if is_limited else 0,
        group_score_top_k=1,
        normalize_weights=False,
    )
    return _read(hf, moe)


def read_v3(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a DeepSeek-V3 config.json."""
    hf.require_value("topk_method", "noaux_tc")
    hf.require_value("scoring_func", "sigmoid")
    hf.require_value("rope_interleave", True)
    moe = MoeConfig(
        router_activation="sigmoid",
        n_groups=hf.get("n_group", 8),
        top_groups=hf.get("topk_group", 4),
        normalize_weights=hf.get("norm_topk_prob", True),
        bias_update_rate=BIAS_RATE,
    )
    return _read(hf, moe)


def _read_rotated_attention(hf: HfConfig) -> LatentAttentionConfig:
    """Reads latent attention, with the scale that YaRN gives the scores of DeepSeek-V3."""
    a, growth = read_latent_attention(hf), rotary.yarn_score_growth(hf)
    return dataclasses.replace(
        a,
        rope=rotary.from_hf(hf, a.rope_dim, style="interleaved"),
        scale=growth**2 * (a.nope_dim + a.rope_dim) ** -0.5 if growth != 1 else 0.0,
    )


def _read(hf: HfConfig, moe: MoeConfig) -> ModelConfig:
    hf.ignore(*IGNORED_KEYS)
    hf.require_value("moe_layer_freq", 1)
    hf.require_value("mlp_bias", False)
    activation, depth = hf.activation("hidden_act", "silu"), hf["num_hidden_layers"]
    num_dense = min(hf.get("first_k_dense_replace", 0), depth)
    is_dense = num_dense == depth
    return ModelConfig(
        width=hf["hidden_size"],
        depth=depth,
        first_layers=() if is_dense else (f"{MIXER}+mlp",) * num_dense,
        layers=(f"{MIXER}+mlp",) if is_dense else (f"{MIXER}+moe",),
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=hf.get("rms_norm_eps", 1e-6)),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", False)),
        latent_attention=_read_rotated_attention(hf),
        mlp=dataclasses.replace(
            ModelConfig().mlp, width=hf["intermediate_size"], activation=activation
        ),
        moe=dataclasses.replace(
            moe,
            num_experts=hf["n_routed_experts"],
            top_k=hf["num_experts_per_tok"],
            width=hf["moe_intermediate_size"],
            activation=activation,
            route_scale=hf.get("routed_scaling_factor", 1.0),
            shared_experts=hf.get("n_shared_experts", 0),
        ),
    )


def write_v2(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for DeepSeek-V2."""
    m = part_or_default(config, "moe")
    limited = m.top_groups > 0
    return _write(config) | {
        "topk_method": "group_limited_greedy" if limited else "greedy",
        "n_group": m.n_groups if limited else None,
        "topk_group": m.top_groups if limited else None,
        "norm_topk_prob": False,
    }


def write_v3(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for DeepSeek-V3."""
    m = part_or_default(config, "moe")
    return _write(config) | {
        "n_group": m.n_groups,
        "topk_group": m.top_groups or m.n_groups,
        "norm_topk_prob": m.normalize_weights,
        "rope_interleave": True,
    }


def _write(config: ModelConfig) -> JsonObject:
    """Returns the keys that both have.

    Raises:
        LookupError: if a dense layer follows one with experts.
    """
    a, m, D = find_part(config, MIXER), part_or_default(config, "moe"), config.width
    channels = [spec.channel for spec in config.layer_layout().layer_specs()]
    num_dense = channels.count("mlp")
    if "mlp" in channels[num_dense:]:
        raise LookupError("first_k_dense_replace")
    _, dn, dr, _ = a.sizes(D)
    growth = math.sqrt(a.scale * math.sqrt(dn + dr)) if a.scale else 1.0
    return {
        "hidden_size": D,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
        "max_position_embeddings": 4096,
        **rotary.yarn_to_hf(a.rope, dr, growth),
        **latent_attention_to_hf(a, D),
        "intermediate_size": part_or_default(config, "mlp").inner_dim(D),
        "hidden_act": activation_name(m.activation),
        "first_k_dense_replace": num_dense,
        "n_routed_experts": m.num_experts,
        "n_shared_experts": count_shared_experts(m, D) or None,
        "num_experts_per_tok": m.top_k,
        "moe_intermediate_size": m.inner_dim(D),
        "routed_scaling_factor": m.route_scale,
    }


def count_shared_experts(m: MoeConfig, D: int) -> int:
    """Returns how many experts the shared ones are, of the width of the others.

    Raises:
        LookupError: if they are not as wide as a number of others.
    """
    width = m.shared_experts_config(D).inner_dim(D) if m.shared_experts else 0
    if width % m.inner_dim(D):
        raise LookupError("n_shared_experts")
    return width // m.inner_dim(D)


def latent_attention_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of latent attention."""
    a = part_or_default(config, MIXER)
    _, dn, _, dv = a.sizes(config.width)
    ours = f"{LAYER}{MIXER}"
    return (
        *linear(f"{ours}.w_q", f"{HF_ATTENTION}.{'q_b_proj' if a.query_rank else 'q_proj'}"),
        *linear(f"{ours}.w_q_down", f"{HF_ATTENTION}.q_a_proj"),
        identity(f"{ours}.norm_q", f"{HF_ATTENTION}.q_a_layernorm.weight"),
        *linear(f"{ours}.w_kv_down", f"{HF_ATTENTION}.kv_a_proj_with_mqa"),
        identity(f"{ours}.norm_kv", f"{HF_ATTENTION}.kv_a_layernorm.weight"),
        *fused_linear(
            (f"{ours}.w_k_up", f"{ours}.w_v_up"),
            f"{HF_ATTENTION}.kv_b_proj",
            (dn, dv),
            n_groups=a.heads,
        ),
        *linear(f"{ours}.w_o", f"{HF_ATTENTION}.o_proj"),
    )


def moe_map(hf_moe: str, gate: str, up: str, down: str) -> tuple[TensorMap, ...]:
    """Returns the tensor names of experts whose matrices have these names, and of shared ones."""
    shared = (("w_gate", "gate_proj"), ("w_in", "up_proj"), ("w_out", "down_proj"))
    return (
        *linear(f"{LAYER}moe.w_router", f"{hf_moe}.gate"),
        identity(f"{LAYER}moe.balance_bias", f"{hf_moe}.gate.e_score_correction_bias"),
        *experts_map(hf_moe + ".experts.{e}", gate, up, down),
        *(
            tensor_map
            for ours, theirs in shared
            for tensor_map in linear(
                f"{LAYER}moe.shared.{ours}", f"{hf_moe}.shared_experts.{theirs}"
            )
        ),
    )


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of both families."""
    return (
        *EMBEDDING_MAP,
        *latent_attention_map(config),
        *NORM_MAP,
        *mlp_map(HF_MLP),
        *moe_map(HF_MLP, "gate_proj", "up_proj", "down_proj"),
        *HEAD_MAP,
    )


DEEPSEEK_V2 = HfFamily(
    *("deepseek_v2", "DeepseekV2ForCausalLM", read_v2, write_v2, name_map),
    hf_defaults={"n_shared_experts": 2, "q_lora_rank": 1536},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
DEEPSEEK_V3 = HfFamily(
    *("deepseek_v3", "DeepseekV3ForCausalLM", read_v3, write_v3, name_map),
    hf_defaults={
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "n_shared_experts": 1,
        "q_lora_rank": 1536,
    },
    prefix="model.",
    # The weights of layer 61 predict the token after the next one.
    ignored_tensors=(r".*rotary_emb\.inv_freq", r"model\.layers\.61\..*"),
    tied_tensors=TIED_EMBEDDING,
)
