"""Maps Qwen3-Next (qwen.ai/blog, "Qwen3-Next", September 2025): Gated DeltaNet and gated attention.

Three of four layers have Gated DeltaNet, whose keys serve several heads. The others have attention
with an output gate, norms of queries and keys, and rotary positions in a quarter of each head. The
channels are those of Qwen2-MoE. The weights of multi-token prediction are not read.
"""

import dataclasses

from arch import ModelConfig
from arch.layers.norms import NormConfig
from arch.mixers.gated_deltanet import GatedDeltaNetConfig
from hub import layer_types, rotary
from hub.families.experts import (
    QWEN_CHANNEL_MAP,
    qwen_channels_to_hf,
    read_qwen_channels,
    shared_expert_to_hf,
    with_shared_expert,
)
from hub.families.llama import (
    EMBEDDING_MAP,
    HEAD_MAP,
    HF_LAYER,
    LAYER,
    NORM_MAP,
    TIED_EMBEDDING,
    base_to_hf,
    read_decoder,
)
from hub.family import HfFamily, part_or_default, shortest_period
from hub.hf_config import HfConfig
from hub.tensor_transforms import CONV1D, TensorMap, fused_linear, identity, linear, qk_norms
from settings.json_types import JsonObject

MIXERS = {layer_types.LINEAR: "gated_deltanet", layer_types.FULL: "attention"}
ROTARY_FRACTION = 0.25
OURS, HF = f"{LAYER}gated_deltanet", f"{HF_LAYER}linear_attn"


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Qwen3-Next config.json."""
    hf.ignore("max_position_embeddings")
    hf.require_value("attention_bias", False)
    rope = rotary.from_hf(hf, hf["head_dim"], rotary_fraction=ROTARY_FRACTION)
    config, period = read_decoder(hf, rope), hf.get("full_attention_interval", 4)
    eps = config.norm.eps
    default = [
        layer_types.LINEAR if (i + 1) % period else layer_types.FULL for i in range(config.depth)
    ]
    mixers = layer_types.read(hf, default, MIXERS)
    channels, moe = read_qwen_channels(hf, config.depth)
    return dataclasses.replace(
        config,
        layers=shortest_period(tuple(map("+".join, zip(mixers, channels, strict=True)))),
        norm=NormConfig(eps=eps, unit_offset=True),
        attention=dataclasses.replace(
            config.attention,
            qk_norm="head",
            qk_norm_eps=eps,
            qk_norm_unit_offset=True,
            output_gate="channel",
        ),
        gated_deltanet=read_deltanet(hf, eps),
        moe=with_shared_expert(hf, moe),
    )


def read_deltanet(hf: HfConfig, norm_eps: float) -> GatedDeltaNetConfig:
    """Reads Gated DeltaNet, without what only OLMo Hybrid has.

    Without numbers of heads there are as many as in attention, whose width the values double and
    the keys have for three quarters.
    """
    H = hf.get("linear_num_value_heads", hf["num_attention_heads"])
    G = hf.get("linear_num_key_heads", hf["num_attention_heads"])
    K = hf.get("linear_key_head_dim", int(0.75 * hf["hidden_size"] / G))
    hf.require_value("hidden_act", "silu", "swish")  # The convolutions have it too.
    return GatedDeltaNetConfig(
        heads=H,
        key_heads=G,
        key_dim=K,
        value_dim=hf.get("linear_value_head_dim", 2 * K),
        conv_width=hf.get("linear_conv_kernel_dim", 4),
        norm_eps=norm_eps,
    )


def deltanet_to_hf(m: GatedDeltaNetConfig, D: int) -> JsonObject:
    """Returns the keys of `read_deltanet`."""
    H, K, Kv = m.head_shape(D)
    return {
        "linear_num_key_heads": m.key_heads or H,
        "linear_num_value_heads": H,
        "linear_key_head_dim": K,
        "linear_value_head_dim": Kv,
        "linear_conv_kernel_dim": m.conv_width,
    }


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Qwen3-Next."""
    a, m = part_or_default(config, "attention"), part_or_default(config, "gated_deltanet")
    head_dim = a.head_shape(config.width)[2]
    return {
        **base_to_hf(config, a),
        **rotary.to_hf(a.rope, head_dim, rotary_fraction=ROTARY_FRACTION),
        **qwen_channels_to_hf(config),
        **shared_expert_to_hf(part_or_default(config, "moe"), config.width),
        **deltanet_to_hf(m, config.width),
        "head_dim": head_dim,
        "attention_bias": False,
        "layer_types": layer_types.write(config, MIXERS),
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Qwen3-Next.

    Rows of fused projections are grouped by head of the keys, or of the attention.
    """
    a, m = part_or_default(config, "attention"), part_or_default(config, "gated_deltanet")
    (heads, _, head_dim), (H, K, Kv) = a.head_shape(config.width), m.head_shape(config.width)
    G = m.key_heads or H
    values = H // G * Kv
    inputs = tuple(f"{OURS}.w_{name}" for name in ("q", "k", "v", "gate"))
    gates = f"{OURS}.w_beta", f"{OURS}.w_dt"
    convs = tuple(f"{OURS}.convs.{i}.w" for i in range(3))
    query_gate = f"{LAYER}attention.w_q", f"{LAYER}attention.w_gate"
    attention = f"{HF_LAYER}self_attn"
    return (
        *EMBEDDING_MAP,
        *fused_linear(inputs, f"{HF}.in_proj_qkvz", (K, K, values, values), n_groups=G),
        *fused_linear(gates, f"{HF}.in_proj_ba", (H // G, H // G), n_groups=G),
        TensorMap(convs, f"{HF}.conv1d.weight", CONV1D, (G * K, G * K, H * Kv)),
        identity(f"{OURS}.log_a", f"{HF}.A_log"),
        identity(f"{OURS}.b_dt", f"{HF}.dt_bias"),
        identity(f"{OURS}.norm", f"{HF}.norm.weight"),
        *linear(f"{OURS}.w_out", f"{HF}.out_proj"),
        *fused_linear(query_gate, f"{attention}.q_proj", (head_dim, head_dim), n_groups=heads),
        *linear(f"{LAYER}attention.w_k", f"{attention}.k_proj"),
        *linear(f"{LAYER}attention.w_v", f"{attention}.v_proj"),
        *linear(f"{LAYER}attention.w_o", f"{attention}.o_proj"),
        *qk_norms("attention", "self_attn"),
        *NORM_MAP,
        *QWEN_CHANNEL_MAP,
        *HEAD_MAP,
    )


QWEN3_NEXT = HfFamily(
    *("qwen3_next", "Qwen3NextForCausalLM", read, write, name_map),
    hf_defaults={
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_value_heads": 32,
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "norm_topk_prob": True,
    },
    prefix="model.",
    ignored_tensors=(r".*rotary_emb\.inv_freq", r"mtp\..*"),
    tied_tensors=TIED_EMBEDDING,
)
