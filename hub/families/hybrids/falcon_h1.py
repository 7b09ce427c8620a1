"""Maps Falcon-H1 (arXiv:2507.22448): attention and Mamba-2 side by side in every layer.

Nine factors of the published configs are settings: of the embedding and the logits, of the keys, of
inputs and outputs of both mixers, of the parts of Mamba-2's input projection, and of the MLP.
"""

import dataclasses
from typing import Literal

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.layers.norms import NormConfig
from arch.mixers.combined.side_by_side import SideBySideConfig
from arch.mixers.mamba2 import Mamba2Config
from hub import rotary
from hub.families.hybrids.bamba import NORM_MAP
from hub.families.llama import (
    ATTENTION_MAP,
    EMBEDDING_MAP,
    HF_LAYER,
    LAYER,
    TIED_EMBEDDING,
    base_to_hf,
    mlp_map,
    read_attention,
)
from hub.families.mamba import dt_limits_to_hf, mamba2_map, read_dt_limits
from hub.family import HfFamily, find_part
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import TensorMap
from settings.json_types import JsonObject

PATTERN = ("attention&mamba2+mlp",)
ONES = (1.0, 1.0)


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Falcon-H1 config.json."""
    D, bias = hf["hidden_size"], hf.get("attention_bias", False)
    hf.ignore("max_position_embeddings", "num_logits_to_keep", "mamba_use_mlp")
    hf.ignore("mlp_expansion_factor", "time_step_floor", "time_step_max", "time_step_min")
    hf.require_value("projectors_bias", False)
    attention = read_attention(hf)
    K = attention.head_shape(D)[2]
    gate_scale, out_scale = hf.get("mlp_multipliers", ONES)
    act = hf.activation("hidden_act", "silu")
    eps = hf.get("rms_norm_eps", 1e-5)
    return ModelConfig(
        width=D,
        depth=hf["num_hidden_layers"],
        layers=PATTERN,
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=eps),
        embed=EmbedConfig(scale=hf.get("embedding_multiplier", 1.0)),
        head=HeadConfig(
            tied=hf.get("tie_word_embeddings", False), scale=hf.get("lm_head_multiplier", 1.0)
        ),
        attention=dataclasses.replace(
            attention,
            scale=hf.get("key_multiplier", 1.0) * K**-0.5,
            bias_qkv=bias,
            bias_out=bias,
        ),
        mamba2=_read_mamba(hf, eps),
        side_by_side=SideBySideConfig(
            in_scales=(hf.get("attention_in_multiplier", 1.0), hf.get("ssm_in_multiplier", 1.0)),
            out_scales=(hf.get("attention_out_multiplier", 1.0), hf.get("ssm_out_multiplier", 1.0)),
        ),
        mlp=MlpConfig(
            width=hf["intermediate_size"],
            activation=act,
            bias=hf.get("mlp_bias", False),
            gate_scale=gate_scale,
            out_scale=out_scale,
        ),
    )


def _read_mamba(hf: HfConfig, eps: float) -> Mamba2Config:
    low, high = read_dt_limits(hf)
    width = hf.get("mamba_d_ssm", hf.get("mamba_expand", 2) * hf["hidden_size"])
    P = hf.get_size("mamba_d_head", width // hf["mamba_n_heads"])
    if hf["mamba_n_heads"] * P != width:
        raise hf.unsupported_error("mamba_d_ssm", f"must be mamba_n_heads * mamba_d_head, {P}")
    is_first = hf.get("mamba_norm_before_gate", True)
    norm: Literal["before_gate", "after_gate"] = "before_gate" if is_first else "after_gate"
    return Mamba2Config(
        expand=hf.get("mamba_expand", 2),
        inner_width=width,
        state_size=hf.get("mamba_d_state", 256),
        head_dim=P,
        n_groups=hf.get("mamba_n_groups", 1),
        conv_width=hf.get("mamba_d_conv", 4),
        conv_bias=hf.get("mamba_conv_bias", True),
        activation=hf.activation("hidden_act", "silu"),
        bias=hf.get("mamba_proj_bias", False),
        chunk_size=hf.get("mamba_chunk_size", 256),
        dt_limit_min=low,
        dt_limit_max=high,
        norm_eps=eps,
        norm=norm if hf.get("mamba_rms_norm", False) else "none",
        in_scales=tuple(hf.get("ssm_multipliers", (1.0,) * 5)),
    )


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Falcon-H1.

    Raises:
        LookupError: if a layer has other mixers, or they are merged in another way.
    """
    D, sums = config.width, config.side_by_side
    if {spec.mixer for spec in config.layer_layout().layer_specs()} != {"attention&mamba2"}:
        raise LookupError("attention&mamba2 in every layer")
    a, m, mlp = (find_part(config, kind) for kind in ("attention", "mamba2", "mlp"))
    (C, H, G, N), K = m.sizes(D), a.head_shape(D)[2]
    (a_in, m_in), (a_out, m_out) = sums.in_scales or ONES, sums.out_scales or ONES
    return {
        **base_to_hf(config, a),
        "head_dim": K,
        **rotary.to_hf(a.rope, K),
        **dt_limits_to_hf(m),
        "attention_bias": a.bias_qkv,
        "key_multiplier": round(a.score_scale(K) * K**0.5, 12),
        "attention_in_multiplier": a_in,
        "attention_out_multiplier": a_out,
        "ssm_in_multiplier": m_in,
        "ssm_out_multiplier": m_out,
        "ssm_multipliers": list(m.in_scales or (1.0,) * 5),
        "embedding_multiplier": config.embed.scale,
        "lm_head_multiplier": config.head.scale,
        "mlp_multipliers": [mlp.gate_scale, mlp.out_scale],
        "intermediate_size": mlp.inner_dim(D),
        "hidden_act": activation_name(mlp.activation),
        "mlp_bias": mlp.bias,
        "projectors_bias": False,
        "mamba_d_ssm": C,
        "mamba_expand": m.expand,
        "mamba_n_heads": H,
        "mamba_d_head": m.head_dim,
        "mamba_n_groups": G,
        "mamba_d_state": N,
        "mamba_d_conv": m.conv_width,
        "mamba_conv_bias": m.conv_bias,
        "mamba_proj_bias": m.bias,
        "mamba_chunk_size": m.chunk_size,
        "mamba_rms_norm": m.norm != "none",
        "mamba_norm_before_gate": m.norm != "after_gate",
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Falcon-H1."""
    sizes = find_part(config, "mamba2").sizes(config.width)
    return (
        *EMBEDDING_MAP,
        *ATTENTION_MAP,
        *mamba2_map(f"{LAYER}mamba2", f"{HF_LAYER}mamba", sizes),
        *mlp_map(f"{HF_LAYER}feed_forward"),
        *NORM_MAP,
    )


FALCON_H1 = HfFamily(
    *("falcon_h1", "FalconH1ForCausalLM", read, write, name_map),
    hf_defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "mamba_d_ssm": 1024},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
