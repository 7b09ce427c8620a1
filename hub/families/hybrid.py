"""State spaces with some attention: Bamba (huggingface.co/blog/bamba), Jamba (arXiv:2403.19887).

Bamba's attention turns half of each head; Jamba's knows no positions.
"""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.embedding import HeadConfig
from arch.mamba1 import Mamba1Config
from arch.mamba2 import Mamba2Config
from arch.mlp import MlpConfig
from arch.moe import MoeConfig
from arch.norms import NormConfig
from arch.rope import RopeConfig
from hub import rotary
from hub.families.experts import experts
from hub.families.llama import ATTENTION, EMBEDDING, TIED, L, T, frame_words, mlp
from hub.families.mamba import limit_words, limits, mixer1, mixer2, rank, whole
from hub.family import Family, own, part, shortest
from hub.keys import Keys, activation_name
from hub.layouts import Tie, linear, norm, same

NORMS = (
    *norm(f"{L}norm_mixer", f"{T}input_layernorm"),
    *norm(f"{L}norm_channel", f"{T}pre_ff_layernorm"),
    *norm("stack.norm", "model.final_layernorm"),
    same("head.table", "lm_head.weight"),
)
ASIDE: tuple[str, ...] = ("max_position_embeddings", "num_logits_to_keep", "z_loss_coefficient")
ASIDE += ("router_aux_loss_coef", "use_mamba_kernels", "use_mambapy", "use_associative_scan")


def frame(k: Keys, rope: RopeConfig | None) -> ModelConfig:
    """What both have in common, without the layers."""
    k.unused(*ASIDE)
    D, H = k["hidden_size"], k["num_attention_heads"]
    G, bias = k.get("num_key_value_heads", H), k.get("attention_bias", False)
    return ModelConfig(
        width=D,
        depth=k["num_hidden_layers"],
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=k.get("rms_norm_eps", 1e-6)),
        head=HeadConfig(tied=k.get("tie_word_embeddings", False)),
        attention=AttentionConfig(
            heads=H,
            kv_heads=0 if G == H else G,
            position="none" if rope is None else "rope",
            rope=rope or RopeConfig(),
            bias_qkv=bias,
            bias_out=bias,
        ),
        mlp=MlpConfig(
            width=k["intermediate_size"],
            activation=k.activation("hidden_act", "silu"),
            bias=k.get("mlp_bias", False),
        ),
    )


def read_bamba(k: Keys) -> ModelConfig:
    D, expand, depth = k["hidden_size"], k.get("mamba_expand", 2), k["num_hidden_layers"]
    H, P = k["mamba_n_heads"], k.get("mamba_d_head", "auto")
    P = expand * D // H if P == "auto" else P
    whole(k, H, P, expand * D)
    attends = k.get("attn_layer_indices", [])
    k.only("partial_rotary_factor", 0.5)  # another one is heard in rope_parameters alone
    rope = rotary.rope(k, D // k["num_attention_heads"], partial=0.5)
    layers = [_layer(i in attends, "mamba2", "mlp") for i in range(depth)]
    config = frame(k, rope)
    low, high = limits(k)
    mamba = Mamba2Config(
        expand=expand,
        state=k.get("mamba_d_state", 256),
        head_width=P,
        groups=k.get("mamba_n_groups", 1),
        conv=k.get("mamba_d_conv", 4),
        conv_bias=k.get("mamba_conv_bias", True),
        activation=config.mlp.activation,
        bias=k.get("mamba_proj_bias", False),
        chunk=k.get("mamba_chunk_size", 256),
        dt_low=low,
        dt_high=high,
        norm_eps=config.norm.eps,
    )
    return dataclasses.replace(config, layers=shortest(tuple(layers)), mamba2=mamba)


def write_bamba(config: ModelConfig) -> dict[str, Any]:
    m, mlp_, kinds = own(config, "mamba2"), part(config, "mlp"), _mixers(config)
    attends = [i for i, kind in enumerate(kinds) if kind != "mamba2"]
    a = own(config, "attention")
    turns = rotary.written(a.rope, a.shape(config.width)[2], partial=0.5)
    _, H, G, N = m.sizes(config.width)
    return {
        **frame_words(config, a),
        **(rotary.nested(turns) if "partial_rotary_factor" in turns else turns),
        **limit_words(m),
        "attn_layer_indices": attends,
        **({} if attends else {"use_cache": False}),  # the reference's cache counts on attention
        "attention_bias": a.bias_qkv,
        "intermediate_size": mlp_.size(config.width),
        "hidden_act": activation_name(mlp_.activation),
        "mlp_bias": mlp_.bias,
        "mamba_expand": m.expand,
        "mamba_d_state": N,
        "mamba_n_heads": H,
        "mamba_d_head": m.head_width,
        "mamba_n_groups": G,
        "mamba_d_conv": m.conv,
        "mamba_conv_bias": m.conv_bias,
        "mamba_proj_bias": m.bias,
        "mamba_chunk_size": m.chunk,
    }


def ties_bamba(config: ModelConfig) -> tuple[Tie, ...]:
    sizes = own(config, "mamba2").sizes(config.width)
    mixer = mixer2(f"{L}mamba2", f"{T}mamba", sizes)
    return (*EMBEDDING, *mixer, *ATTENTION, *mlp(f"{T}feed_forward"), *NORMS)


def read_jamba(k: Keys) -> ModelConfig:
    D, depth, E = k["hidden_size"], k["num_hidden_layers"], k.get("num_experts", 16)
    k.only("sliding_window", None)
    attends = k.get("attn_layer_period", 8), k.get("attn_layer_offset", 4)
    sparse = k.get("expert_layer_period", 2), k.get("expert_layer_offset", 1)

    def at(i: int, where: tuple[int, int]) -> bool:
        return i % where[0] == where[1]

    layers = [
        _layer(at(i, attends), "mamba1", "moe" if E > 1 and at(i, sparse) else "mlp")
        for i in range(depth)
    ]
    config = frame(k, None)
    mamba = Mamba1Config(
        expand=k.get("mamba_expand", 2),
        state=k.get("mamba_d_state", 16),
        rank=rank(k, "mamba_dt_rank", D),
        conv=k.get("mamba_d_conv", 4),
        conv_bias=k.get("mamba_conv_bias", True),
        activation=config.mlp.activation,
        bias=k.get("mamba_proj_bias", False),
        norms=True,
        norm_eps=config.norm.eps,
    )
    moe = MoeConfig(
        experts=E,
        top_k=min(k.get("num_experts_per_tok", 2), E),
        width=config.mlp.width,
        activation=config.mlp.activation,
        normalize=False,
    )
    layers_ = shortest(tuple(layers))
    return dataclasses.replace(config, layers=layers_, mamba1=mamba, moe=moe)


def write_jamba(config: ModelConfig) -> dict[str, Any]:
    m, a = own(config, "mamba1"), own(config, "attention")
    channel = [e.channel for e in config.plan().entries()]
    mlp_ = part(config, channel[0])
    experts_ = part(config, "moe") if "moe" in channel else MoeConfig(experts=1, top_k=1)
    _, N, R = m.sizes(config.width)
    every, offset = _period([kind != "mamba1" for kind in _mixers(config)])
    every_moe, offset_moe = _period([name == "moe" for name in channel])
    return {
        **frame_words(config, a),
        "attn_layer_period": every,
        "attn_layer_offset": offset,
        "expert_layer_period": every_moe,
        "expert_layer_offset": offset_moe,
        "num_experts": experts_.experts,
        "num_experts_per_tok": experts_.top_k,
        "intermediate_size": mlp_.size(config.width),
        "hidden_act": activation_name(mlp_.activation),
        "mamba_expand": m.expand,
        "mamba_d_state": N,
        "mamba_dt_rank": R,
        "mamba_d_conv": m.conv,
        "mamba_conv_bias": m.conv_bias,
        "mamba_proj_bias": m.bias,
    }


def ties_jamba(config: ModelConfig) -> tuple[Tie, ...]:
    C, _, _ = own(config, "mamba1").sizes(config.width)
    channel = f"{T}feed_forward"
    return (
        *EMBEDDING,
        *mixer1(f"{L}mamba1", f"{T}mamba", C),
        *ATTENTION,
        *mlp(channel),
        *linear(f"{L}moe.w_router", f"{channel}.router"),
        *experts(channel + ".experts.{e}", "gate_proj", "up_proj", "down_proj"),
        *NORMS,
    )


def _layer(attends: bool, other: str, channel: str) -> str:
    return f"{'attention' if attends else other}+{channel}"


def _mixers(config: ModelConfig) -> list[str]:
    return [e.mixer for e in config.plan().entries()]


def _period(where: list[bool]) -> tuple[int, int]:
    """(p, o) such that `where` holds at i % p == o; LookupError if there are none."""
    if not any(where):
        return len(where) + 1, len(where)
    for p in range(1, len(where) + 1):
        for o in range(p):
            if all(here == (i % p == o) for i, here in enumerate(where)):
                return p, o
    raise LookupError("no period")


BAMBA = Family(
    *("bamba", "BambaForCausalLM", read_bamba, write_bamba, ties_bamba),
    defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5},
    prefix="model.",
    copies=TIED,
)
JAMBA = Family(
    *("jamba", "JambaForCausalLM", read_jamba, write_jamba, ties_jamba),
    defaults={"num_key_value_heads": 8},
    prefix="model.",
    copies=TIED,
)
