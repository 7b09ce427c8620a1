"""Maps Mamba (arXiv:2312.00752) and Mamba-2 (arXiv:2405.21060), whose blocks have no channel."""

import math

from arch import ModelConfig
from arch.layers.dt import DtConfig
from arch.layers.embedding import HeadConfig
from arch.layers.norms import NormConfig
from arch.mixers.mamba1 import Mamba1Config
from arch.mixers.mamba2 import Mamba2Config
from errors import ConfigError
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import CONV1D, IDENTITY, TensorMap, fused_linear, identity, linear, norm
from settings.json_types import JsonObject

LAYER, HF_LAYER = "stack.{i}.", "backbone.layers.{i}."
# These keys are about initialization or precision, or are old names of keys that are read.
IGNORED_KEYS: tuple[str, ...] = (
    "residual_in_fp32",
    "rescale_prenorm_residual",
    "time_step_init_scheme",
)
IGNORED_KEYS += ("time_step_scale", "use_mambapy", "use_associative_scan", "use_falcon_mambapy")
IGNORED_KEYS += (
    "d_inner",
    "d_model",
    "n_layer",
    "fused_add_norm",
    "pad_vocab_size_multiple",
    "ssm_cfg",
)


def mamba1_map(param_prefix: str, hf_prefix: str, C: int) -> tuple[TensorMap, ...]:
    """Returns the tensor names of a Mamba-1 mixer with C channels."""
    return (
        *fused_linear(
            (f"{param_prefix}.w_in", f"{param_prefix}.w_gate"), f"{hf_prefix}.in_proj", (C, C)
        ),
        TensorMap((f"{param_prefix}.conv.w",), f"{hf_prefix}.conv1d.weight", CONV1D),
        identity(f"{param_prefix}.conv.b", f"{hf_prefix}.conv1d.bias"),
        *linear(f"{param_prefix}.w_select", f"{hf_prefix}.x_proj"),
        *linear(f"{param_prefix}.w_dt", f"{hf_prefix}.dt_proj"),
        identity(f"{param_prefix}.log_a", f"{hf_prefix}.A_log"),
        identity(f"{param_prefix}.skip", f"{hf_prefix}.D"),
        identity(f"{param_prefix}.norm_dt", f"{hf_prefix}.dt_layernorm.weight"),
        identity(f"{param_prefix}.norm_b", f"{hf_prefix}.b_layernorm.weight"),
        identity(f"{param_prefix}.norm_c", f"{hf_prefix}.c_layernorm.weight"),
        *linear(f"{param_prefix}.w_out", f"{hf_prefix}.out_proj"),
    )


def mamba2_map(
    param_prefix: str, hf_prefix: str, sizes: tuple[int, int, int, int]
) -> tuple[TensorMap, ...]:
    """Returns the tensor names of a Mamba-2 mixer; `sizes` are its (C, H, G, N).

    C is the number of channels, H of heads, G of groups, and N the size of the state.
    """
    C, H, G, N = sizes
    in_sizes, conv_sizes = (C, C, 2 * G * N, H), (C, 2 * G * N)

    def params(*names: str) -> tuple[str, ...]:
        return tuple(f"{param_prefix}.{name}" for name in names)

    matrix, _ = fused_linear(
        params("w_gate", "w_in", "w_bc", "w_dt"), f"{hf_prefix}.in_proj", in_sizes
    )
    return (
        matrix,
        TensorMap(
            params("b_gate", "b_in", "b_bc", "b_dt_proj"),
            f"{hf_prefix}.in_proj.bias",
            IDENTITY,
            in_sizes,
        ),
        TensorMap(params("conv.w", "conv_bc.w"), f"{hf_prefix}.conv1d.weight", CONV1D, conv_sizes),
        TensorMap(params("conv.b", "conv_bc.b"), f"{hf_prefix}.conv1d.bias", IDENTITY, conv_sizes),
        identity(f"{param_prefix}.b_dt", f"{hf_prefix}.dt_bias"),
        identity(f"{param_prefix}.log_a", f"{hf_prefix}.A_log"),
        identity(f"{param_prefix}.skip", f"{hf_prefix}.D"),
        identity(f"{param_prefix}.norm", f"{hf_prefix}.norm.weight"),
        *linear(f"{param_prefix}.w_out", f"{hf_prefix}.out_proj"),
    )


# The largest finite float32 bounds nothing, and is a number in JSON, which an infinity is not.
LARGEST_FLOAT = 3.4028234663852886e38


def read_dt_limits(hf: HfConfig) -> tuple[float, float]:
    """Reads the bounds of the step size; the upper one is 0 if it is infinite."""
    low, high = map(float, hf.get("time_step_limit", (0.0, math.inf)))
    return low, 0.0 if high >= LARGEST_FLOAT else high


def dt_limits_to_hf(mamba: Mamba2Config) -> JsonObject:
    """Returns the key of the bounds of the step size."""
    return {"time_step_limit": [mamba.dt_limit_min, mamba.dt_limit_max or LARGEST_FLOAT]}


def read_dt_init(hf: HfConfig) -> DtConfig:
    """Reads the initialization of the step size."""
    return DtConfig(
        dt_min=hf.get("time_step_min", 1e-3),
        dt_max=hf.get("time_step_max", 1e-1),
        dt_init_floor=hf.get("time_step_floor", 1e-4),
    )


def read_dt_rank(hf: HfConfig, name: str, D: int) -> int:
    """Reads the rank of the step size; "auto" is a sixteenth of the width D, rounded up."""
    return hf.get_size(name, -(-D // 16))


def check_inner_width(hf: HfConfig, heads: int, head_dim: int, inner: int) -> None:
    """Checks that the heads together have the expanded width.

    Raises:
        ConfigError: if they have another one.
    """
    if heads * head_dim != inner:
        raise ConfigError(
            f"config.json: {heads} heads of width {head_dim} must have the total width {inner} = "
            "expand * hidden_size; other widths are not implemented"
        )


def read_mamba1(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Mamba config.json."""
    D, expand = hf["hidden_size"], hf.get("expand", 2)
    hf.ignore(*IGNORED_KEYS)
    hf.require_value("rms_norm", True)
    hf.require_value("intermediate_size", None, expand * D)
    return ModelConfig(
        width=D,
        depth=hf["num_hidden_layers"],
        layers=("mamba1+none",),
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=hf.get("layer_norm_epsilon", 1e-5)),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", True)),
        mamba1=Mamba1Config(
            expand=expand,
            state_size=hf.get("state_size", 16),
            dt_rank=read_dt_rank(hf, "time_step_rank", D),
            conv_width=hf.get("conv_kernel", 4),
            conv_bias=hf.get("use_conv_bias", True),
            activation=hf.activation("hidden_act", "silu"),
            bias=hf.get("use_bias", False),
            dt=read_dt_init(hf),
        ),
    )


def write_mamba1(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Mamba."""
    m = find_part(config, "mamba1")
    C, N, R = m.sizes(config.width)
    return {
        **_base_to_hf(config, m),
        "state_size": N,
        "intermediate_size": C,
        "time_step_rank": R,
        "tie_word_embeddings": config.head.tied,
    }


def read_mamba2(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Mamba-2 config.json."""
    D, expand = hf["hidden_size"], hf.get("expand", 2)
    H, P = hf["num_heads"], hf["head_dim"]
    check_inner_width(hf, H, P, expand * D)
    hf.ignore(*IGNORED_KEYS, "time_step_rank")
    hf.ignore("norm_before_gate")  # Codestral's files have it, and no library reads it
    hf.require_value("rms_norm", True)
    eps, (low, high) = hf.get("layer_norm_epsilon", 1e-5), read_dt_limits(hf)
    return ModelConfig(
        width=D,
        depth=hf["num_hidden_layers"],
        layers=("mamba2+none",),
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=eps),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", False)),
        mamba2=Mamba2Config(
            expand=expand,
            state_size=hf.get("state_size", 128),
            head_dim=P,
            n_groups=hf.get("n_groups", 8),
            conv_width=hf.get("conv_kernel", 4),
            conv_bias=hf.get("use_conv_bias", True),
            activation=hf.activation("hidden_act", "silu"),
            bias=hf.get("use_bias", False),
            chunk_size=hf.get("chunk_size", 256),
            dt_limit_min=low,
            dt_limit_max=high,
            norm_eps=eps,
            dt=read_dt_init(hf),
        ),
    )


def write_mamba2(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Mamba-2."""
    m = find_part(config, "mamba2")
    _, H, G, N = m.sizes(config.width)
    return {
        **_base_to_hf(config, m),
        **dt_limits_to_hf(m),
        "state_size": N,
        "num_heads": H,
        "head_dim": m.head_dim,
        "n_groups": G,
        "chunk_size": m.chunk_size,
        "tie_word_embeddings": config.head.tied,
    }


def _base_to_hf(config: ModelConfig, mamba: Mamba1Config | Mamba2Config) -> JsonObject:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab_size,
        "layer_norm_epsilon": config.norm.eps,
        "expand": mamba.expand,
        "conv_kernel": mamba.conv_width,
        "use_conv_bias": mamba.conv_bias,
        "use_bias": mamba.bias,
        "hidden_act": activation_name(mamba.activation),
    }


def _base_map(mixer_map: tuple[TensorMap, ...]) -> tuple[TensorMap, ...]:
    return (
        identity("embed.table", "backbone.embeddings.weight"),
        *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}norm"),
        *mixer_map,
        *norm("stack.norm", "backbone.norm_f"),
        identity("head.table", "lm_head.weight"),
    )


def name_map_mamba1(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Mamba."""
    C, _, _ = find_part(config, "mamba1").sizes(config.width)
    return _base_map(mamba1_map(f"{LAYER}mamba1", f"{HF_LAYER}mixer", C))


def name_map_mamba2(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Mamba-2."""
    return _base_map(
        mamba2_map(
            f"{LAYER}mamba2", f"{HF_LAYER}mixer", find_part(config, "mamba2").sizes(config.width)
        )
    )


OLD_NAMES = ((r"^(backbone\.)?embedding\.weight$", "backbone.embeddings.weight"),)
TIED_EMBEDDING = (("lm_head.weight", "backbone.embeddings.weight"),)
MAMBA = HfFamily(
    *("mamba", "MambaForCausalLM", read_mamba1, write_mamba1, name_map_mamba1),
    prefix="backbone.",
    tied_tensors=TIED_EMBEDDING,
    renames=OLD_NAMES,
)
MAMBA2 = HfFamily(
    *("mamba2", "Mamba2ForCausalLM", read_mamba2, write_mamba2, name_map_mamba2),
    prefix="backbone.",
    tied_tensors=TIED_EMBEDDING,
    renames=OLD_NAMES,
)
