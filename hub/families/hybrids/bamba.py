"""Maps Bamba (huggingface.co/blog/bamba) and Jamba (arXiv:2403.19887).

Both combine state-space layers with attention layers. Bamba's attention rotates half of each head,
and Jamba's has no position encoding.
"""

import dataclasses

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.channels.moe import MoeConfig
from arch.layers.embedding import HeadConfig
from arch.layers.norms import NormConfig
from arch.layers.rope import RopeConfig
from arch.mixers.attention import AttentionConfig
from arch.mixers.mamba1 import Mamba1Config
from arch.mixers.mamba2 import Mamba2Config
from hub import rotary
from hub.families.experts import experts_map
from hub.families.llama import (
    ATTENTION_MAP,
    EMBEDDING_MAP,
    HF_LAYER,
    LAYER,
    TIED_EMBEDDING,
    base_to_hf,
    mlp_map,
)
from hub.families.mamba import (
    check_inner_width,
    dt_limits_to_hf,
    mamba1_map,
    mamba2_map,
    read_dt_limits,
    read_dt_rank,
)
from hub.family import HfFamily, find_part, part_or_default, shortest_period
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap, identity, linear, norm
from settings.json_types import JsonObject

NORM_MAP = (
    *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}input_layernorm"),
    *norm(f"{LAYER}norm_channel", f"{HF_LAYER}pre_ff_layernorm"),
    *norm("stack.norm", "model.final_layernorm"),
    identity("head.table", "lm_head.weight"),
)
IGNORED_KEYS: tuple[str, ...] = (
    "max_position_embeddings",
    "num_logits_to_keep",
    "z_loss_coefficient",
)
IGNORED_KEYS += ("router_aux_loss_coef", "use_mamba_kernels", "use_mambapy", "use_associative_scan")


def read_base(hf: HfConfig, rope: RopeConfig | None) -> ModelConfig:
    """Returns the settings that both families share, without the pattern of layers."""
    hf.ignore(*IGNORED_KEYS)
    D, H = hf["hidden_size"], hf["num_attention_heads"]
    G, bias = hf.get("num_key_value_heads", H), hf.get("attention_bias", False)
    return ModelConfig(
        width=D,
        depth=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=hf.get("rms_norm_eps", 1e-6)),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", False)),
        attention=AttentionConfig(
            heads=H,
            kv_heads=0 if G == H else G,
            position_encoding="none" if rope is None else "rope",
            rope=rope or RopeConfig(),
            bias_qkv=bias,
            bias_out=bias,
        ),
        mlp=MlpConfig(
            width=hf["intermediate_size"],
            activation=hf.activation("hidden_act", "silu"),
            bias=hf.get("mlp_bias", False),
        ),
    )


def read_bamba(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Bamba config.json."""
    D, expand, depth = hf["hidden_size"], hf.get("mamba_expand", 2), hf["num_hidden_layers"]
    H = hf["mamba_n_heads"]
    P = hf.get_size("mamba_d_head", expand * D // H)
    check_inner_width(hf, H, P, expand * D)
    attention_layers = hf.get("attn_layer_indices", list[int]())
    hf.require_value(
        "partial_rotary_factor", 0.5
    )  # the reference reads others only in rope_parameters
    rope = rotary.from_hf(hf, D // hf["num_attention_heads"], rotary_fraction=0.5)
    # The published file states the rotated width too.
    hf.require_value("attn_rotary_emb", None, rope.rotary_dim or D // hf["num_attention_heads"])
    layers = [_layer_entry(i in attention_layers, "mamba2", "mlp") for i in range(depth)]
    config = read_base(hf, rope)
    low, high = read_dt_limits(hf)
    mamba = Mamba2Config(
        expand=expand,
        state_size=hf.get("mamba_d_state", 256),
        head_dim=P,
        n_groups=hf.get("mamba_n_groups", 1),
        conv_width=hf.get("mamba_d_conv", 4),
        conv_bias=hf.get("mamba_conv_bias", True),
        activation=config.mlp.activation,
        bias=hf.get("mamba_proj_bias", False),
        chunk_size=hf.get("mamba_chunk_size", 256),
        dt_limit_min=low,
        dt_limit_max=high,
        norm_eps=config.norm.eps,
    )
    return dataclasses.replace(config, layers=shortest_period(tuple(layers)), mamba2=mamba)


def write_bamba(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Bamba."""
    m, mlp = part_or_default(config, "mamba2"), find_part(config, "mlp")
    attention_layers = [i for i, mixer in enumerate(_mixers(config)) if mixer != "mamba2"]
    a = part_or_default(config, "attention")
    rope_keys = rotary.to_hf(a.rope, a.head_shape(config.width)[2], rotary_fraction=0.5)
    if "partial_rotary_factor" in rope_keys:
        rope_keys = rotary.as_rope_parameters(rope_keys)
    _, H, G, N = m.sizes(config.width)
    return {
        **base_to_hf(config, a),
        **rope_keys,
        **dt_limits_to_hf(m),
        "attn_layer_indices": attention_layers,
        **({} if attention_layers else {"use_cache": False}),  # the cache needs an attention layer
        "attention_bias": a.bias_qkv,
        "intermediate_size": mlp.inner_dim(config.width),
        "hidden_act": activation_name(mlp.activation),
        "mlp_bias": mlp.bias,
        "mamba_expand": m.expand,
        "mamba_d_state": N,
        "mamba_n_heads": H,
        "mamba_d_head": m.head_dim,
        "mamba_n_groups": G,
        "mamba_d_conv": m.conv_width,
        "mamba_conv_bias": m.conv_bias,
        "mamba_proj_bias": m.bias,
        "mamba_chunk_size": m.chunk_size,
    }


def name_map_bamba(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Bamba."""
    sizes = part_or_default(config, "mamba2").sizes(config.width)
    mixer = mamba2_map(f"{LAYER}mamba2", f"{HF_LAYER}mamba", sizes)
    return (*EMBEDDING_MAP, *mixer, *ATTENTION_MAP, *mlp_map(f"{HF_LAYER}feed_forward"), *NORM_MAP)


def read_jamba(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Jamba config.json."""
    D, depth, E = hf["hidden_size"], hf["num_hidden_layers"], hf.get("num_experts", 16)
    hf.require_value("sliding_window", None)
    attention_period = hf.get("attn_layer_period", 8), hf.get("attn_layer_offset", 4)
    moe_period = hf.get("expert_layer_period", 2), hf.get("expert_layer_offset", 1)

    def occurs(i: int, period: tuple[int, int]) -> bool:
        return i % period[0] == period[1]

    channels = ["moe" if E > 1 and occurs(i, moe_period) else "mlp" for i in range(depth)]
    layers = [
        _layer_entry(occurs(i, attention_period), "mamba1", channel)
        for i, channel in enumerate(channels)
    ]
    config = read_base(hf, None)
    mamba = Mamba1Config(
        expand=hf.get("mamba_expand", 2),
        state_size=hf.get("mamba_d_state", 16),
        dt_rank=read_dt_rank(hf, "mamba_dt_rank", D),
        conv_width=hf.get("mamba_d_conv", 4),
        conv_bias=hf.get("mamba_conv_bias", True),
        activation=config.mlp.activation,
        bias=hf.get("mamba_proj_bias", False),
        dt_bc_norm=True,
        norm_eps=config.norm.eps,
    )
    moe = MoeConfig(
        num_experts=E,
        top_k=min(hf.get("num_experts_per_tok", 2), E),
        width=config.mlp.width,
        activation=config.mlp.activation,
        normalize_weights=False,
    )
    pattern = shortest_period(tuple(layers))
    return dataclasses.replace(config, layers=pattern, mamba1=mamba, moe=moe)


def write_jamba(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Jamba."""
    m, a = part_or_default(config, "mamba1"), part_or_default(config, "attention")
    channels = [spec.channel for spec in config.layer_layout().layer_specs()]
    mlp = find_part(config, channels[0])
    moe = find_part(config, "moe") if "moe" in channels else MoeConfig(num_experts=1, top_k=1)
    _, N, R = m.sizes(config.width)
    period, offset = _find_period([mixer != "mamba1" for mixer in _mixers(config)])
    moe_period, moe_offset = _find_period([channel == "moe" for channel in channels])
    return {
        **base_to_hf(config, a),
        "attn_layer_period": period,
        "attn_layer_offset": offset,
        "expert_layer_period": moe_period,
        "expert_layer_offset": moe_offset,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": mlp.inner_dim(config.width),
        "hidden_act": activation_name(mlp.activation),
        "mamba_expand": m.expand,
        "mamba_d_state": N,
        "mamba_dt_rank": R,
        "mamba_d_conv": m.conv_width,
        "mamba_conv_bias": m.conv_bias,
        "mamba_proj_bias": m.bias,
    }


def name_map_jamba(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Jamba."""
    C, _, _ = part_or_default(config, "mamba1").sizes(config.width)
    channel = f"{HF_LAYER}feed_forward"
    return (
        *EMBEDDING_MAP,
        *mamba1_map(f"{LAYER}mamba1", f"{HF_LAYER}mamba", C),
        *ATTENTION_MAP,
        *mlp_map(channel),
        *linear(f"{LAYER}moe.w_router", f"{channel}.router"),
        *experts_map(channel + ".experts.{e}", "gate_proj", "up_proj", "down_proj"),
        *NORM_MAP,
    )


def _layer_entry(is_attention: bool, ssm: str, channel: str) -> str:
    return f"{'attention' if is_attention else ssm}+{channel}"


def _mixers(config: ModelConfig) -> list[str]:
    return [spec.mixer for spec in config.layer_layout().layer_specs()]


def _find_period(is_member: list[bool]) -> tuple[int, int]:
    """Returns (p, o) such that `is_member[i]` is the same as i % p == o.

    Without members, p is larger than the number of layers.

    Raises:
        LookupError: if there are no such numbers.
    """
    if not any(is_member):
        return len(is_member) + 1, len(is_member)
    for p in range(1, len(is_member) + 1):
        for o in range(p):
            if all(member == (i % p == o) for i, member in enumerate(is_member)):
                return p, o
    raise LookupError("the layers of this kind have no period")


BAMBA = HfFamily(
    *("bamba", "BambaForCausalLM", read_bamba, write_bamba, name_map_bamba),
    hf_defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
JAMBA = HfFamily(
    *("jamba", "JambaForCausalLM", read_jamba, write_jamba, name_map_jamba),
    hf_defaults={"num_key_value_heads": 8},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
