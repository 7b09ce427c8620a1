"""Mamba (arXiv:2312.00752) and Mamba-2 (arXiv:2405.21060): blocks of a mixer and nothing else."""

import math
from typing import Any

from arch import ModelConfig
from arch.embedding import HeadConfig
from arch.mamba1 import Mamba1Config
from arch.mamba2 import Mamba2Config
from arch.norms import NormConfig
from arch.step_size import StepConfig
from errors import ConfigError
from hub.family import Family, part
from hub.keys import Keys, activation_name
from hub.layouts import SAME, TAPS, Tie, fused, linear, norm, same

L, T = "stack.{i}.", "backbone.layers.{i}."
# Initialisation, precision of the stream, and what says the same in the words of the first files.
ASIDE: tuple[str, ...] = ("residual_in_fp32", "rescale_prenorm_residual", "time_step_init_scheme")
ASIDE += ("time_step_scale", "use_mambapy", "use_associative_scan", "use_falcon_mambapy")
ASIDE += ("d_inner", "d_model", "n_layer", "fused_add_norm", "pad_vocab_size_multiple", "ssm_cfg")


def mixer1(ours: str, theirs: str, C: int) -> tuple[Tie, ...]:
    """Mamba-1 with C channels below the two names."""
    return (
        *fused((f"{ours}.w_in", f"{ours}.w_gate"), f"{theirs}.in_proj", (C, C)),
        Tie((f"{ours}.conv.w",), f"{theirs}.conv1d.weight", TAPS),
        same(f"{ours}.conv.b", f"{theirs}.conv1d.bias"),
        *linear(f"{ours}.w_select", f"{theirs}.x_proj"),
        *linear(f"{ours}.w_dt", f"{theirs}.dt_proj"),
        same(f"{ours}.log_a", f"{theirs}.A_log"),
        same(f"{ours}.skip", f"{theirs}.D"),
        same(f"{ours}.norm_dt", f"{theirs}.dt_layernorm.weight"),
        same(f"{ours}.norm_b", f"{theirs}.b_layernorm.weight"),
        same(f"{ours}.norm_c", f"{theirs}.c_layernorm.weight"),
        *linear(f"{ours}.w_out", f"{theirs}.out_proj"),
    )


def mixer2(ours: str, theirs: str, sizes: tuple[int, int, int, int]) -> tuple[Tie, ...]:
    """Mamba-2 with C channels, H heads, G groups and N numbers below the two names."""
    C, H, G, N = sizes
    into, taps = (C, C, 2 * G * N, H), (C, 2 * G * N)

    def own(*names: str) -> tuple[str, ...]:
        return tuple(f"{ours}.{name}" for name in names)

    matrix, _ = fused(own("w_gate", "w_in", "w_bc", "w_dt"), f"{theirs}.in_proj", into)
    return (
        matrix,
        Tie(own("b_gate", "b_in", "b_bc", "b_head"), f"{theirs}.in_proj.bias", SAME, into),
        Tie(own("conv.w", "conv_bc.w"), f"{theirs}.conv1d.weight", TAPS, taps),
        Tie(own("conv.b", "conv_bc.b"), f"{theirs}.conv1d.bias", SAME, taps),
        same(f"{ours}.b_dt", f"{theirs}.dt_bias"),
        same(f"{ours}.log_a", f"{theirs}.A_log"),
        same(f"{ours}.skip", f"{theirs}.D"),
        same(f"{ours}.norm", f"{theirs}.norm.weight"),
        *linear(f"{ours}.w_out", f"{theirs}.out_proj"),
    )


def limits(k: Keys) -> tuple[float, float]:
    """Bounds of the step size; 0 for an infinite upper one."""
    low, high = map(float, k.get("time_step_limit", (0.0, math.inf)))
    return low, 0.0 if math.isinf(high) else high


def limit_words(m: Mamba2Config) -> dict[str, Any]:
    return {"time_step_limit": [m.dt_low, m.dt_high or math.inf]}


def steps(k: Keys) -> StepConfig:
    return StepConfig(
        low=k.get("time_step_min", 1e-3),
        high=k.get("time_step_max", 1e-1),
        floor=k.get("time_step_floor", 1e-4),
    )


def rank(k: Keys, name: str, D: int) -> int:
    value = k.get(name, "auto")
    return -(-D // 16) if value == "auto" else value


def whole(k: Keys, heads: int, width: int, inner: int) -> None:
    if heads * width != inner:
        raise ConfigError(
            f"config.json: {heads} heads of {width} are not the {inner} of expand * hidden_size, "
            "which is not implemented"
        )


def read1(k: Keys) -> ModelConfig:
    D, expand = k["hidden_size"], k.get("expand", 2)
    k.unused(*ASIDE)
    k.only("rms_norm", True)
    k.only("intermediate_size", None, expand * D)
    return ModelConfig(
        width=D,
        depth=k["num_hidden_layers"],
        layers=("mamba1+none",),
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=k.get("layer_norm_epsilon", 1e-5)),
        head=HeadConfig(tied=k.get("tie_word_embeddings", True)),
        mamba1=Mamba1Config(
            expand=expand,
            state=k.get("state_size", 16),
            rank=rank(k, "time_step_rank", D),
            conv=k.get("conv_kernel", 4),
            conv_bias=k.get("use_conv_bias", True),
            activation=k.activation("hidden_act", "silu"),
            bias=k.get("use_bias", False),
            step=steps(k),
        ),
    )


def write1(config: ModelConfig) -> dict[str, Any]:
    m = part(config, "mamba1")
    C, N, R = m.sizes(config.width)
    return {
        **_words(config, m),
        "state_size": N,
        "intermediate_size": C,
        "time_step_rank": R,
        "tie_word_embeddings": config.head.tied,
    }


def read2(k: Keys) -> ModelConfig:
    D, expand = k["hidden_size"], k.get("expand", 2)
    H, P = k["num_heads"], k["head_dim"]
    whole(k, H, P, expand * D)
    k.unused(*ASIDE, "time_step_rank")
    k.unused("norm_before_gate")  # in files of Codestral; no reader of them has it
    k.only("rms_norm", True)
    eps, (low, high) = k.get("layer_norm_epsilon", 1e-5), limits(k)
    return ModelConfig(
        width=D,
        depth=k["num_hidden_layers"],
        layers=("mamba2+none",),
        vocab=k["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=eps),
        head=HeadConfig(tied=k.get("tie_word_embeddings", False)),
        mamba2=Mamba2Config(
            expand=expand,
            state=k.get("state_size", 128),
            head_width=P,
            groups=k.get("n_groups", 8),
            conv=k.get("conv_kernel", 4),
            conv_bias=k.get("use_conv_bias", True),
            activation=k.activation("hidden_act", "silu"),
            bias=k.get("use_bias", False),
            chunk=k.get("chunk_size", 256),
            dt_low=low,
            dt_high=high,
            norm_eps=eps,
            step=steps(k),
        ),
    )


def write2(config: ModelConfig) -> dict[str, Any]:
    m = part(config, "mamba2")
    _, H, G, N = m.sizes(config.width)
    return {
        **_words(config, m),
        **limit_words(m),
        "state_size": N,
        "num_heads": H,
        "head_dim": m.head_width,
        "n_groups": G,
        "chunk_size": m.chunk,
        "tie_word_embeddings": config.head.tied,
    }


def _words(config: ModelConfig, m: Any) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab,
        "layer_norm_epsilon": config.norm.eps,
        "expand": m.expand,
        "conv_kernel": m.conv,
        "use_conv_bias": m.conv_bias,
        "use_bias": m.bias,
        "hidden_act": activation_name(m.activation),
    }


def _frame(mixer: tuple[Tie, ...]) -> tuple[Tie, ...]:
    return (
        same("embed.table", "backbone.embeddings.weight"),
        *norm(f"{L}norm_mixer", f"{T}norm"),
        *mixer,
        *norm("stack.norm", "backbone.norm_f"),
        same("head.table", "lm_head.weight"),
    )


def ties1(config: ModelConfig) -> tuple[Tie, ...]:
    C, _, _ = part(config, "mamba1").sizes(config.width)
    return _frame(mixer1(f"{L}mamba1", f"{T}mixer", C))


def ties2(config: ModelConfig) -> tuple[Tie, ...]:
    return _frame(mixer2(f"{L}mamba2", f"{T}mixer", part(config, "mamba2").sizes(config.width)))


OLD = ((r"^(backbone\.)?embedding\.weight$", "backbone.embeddings.weight"),)
TIED = (("lm_head.weight", "backbone.embeddings.weight"),)
MAMBA = Family(
    *("mamba", "MambaForCausalLM", read1, write1, ties1),
    prefix="backbone.",
    copies=TIED,
    renames=OLD,
)
MAMBA2 = Family(
    *("mamba2", "Mamba2ForCausalLM", read2, write2, ties2),
    prefix="backbone.",
    copies=TIED,
    renames=OLD,
)
