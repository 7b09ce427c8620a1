"""Maps Kimi Linear (arXiv:2510.26692): Kimi Delta Attention, and MLA without positions.

The first layers are dense, the others have the experts of DeepSeek-V3. The files of version 4 have
their layers in `linear_attn_config`, counted from 1, and many keys have two spellings.
"""

import dataclasses

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.channels.moe import MoeConfig
from arch.layers.embedding import HeadConfig
from arch.layers.norms import NormConfig
from arch.mixers.kda import KdaConfig
from hub import layer_types
from hub.families import deepseek
from hub.families.llama import (
    EMBEDDING_MAP,
    HEAD_MAP,
    HF_LAYER,
    LAYER,
    NORM_MAP,
    TIED_EMBEDDING,
    mlp_map,
)
from hub.family import HfFamily, part_or_default, shortest_period
from hub.hf_config import HfConfig, activation_name
from hub.tensor_transforms import CONV1D, PER_HEAD, TRANSPOSED, TensorMap, identity
from settings.json_types import JsonObject

MIXERS = {layer_types.LINEAR: "kda", layer_types.FULL: deepseek.MIXER}
CHANNELS = {"dense": "mlp", "sparse": "moe"}
OURS, HF = f"{LAYER}kda", f"{HF_LAYER}self_attn"
IGNORED_KEYS: tuple[str, ...] = ("max_position_embeddings", "model_max_length", "head_dim")
IGNORED_KEYS += ("qk_head_dim", "num_nextn_predict_layers", "rope_theta", "rope_scaling")
# Keys of `linear_attn_config`, and those of version 5.
LINEAR_KEYS = {
    "head_dim": "linear_head_dim",
    "num_heads": "linear_num_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}
LISTS = {"kda_layers": layer_types.LINEAR, "full_attn_layers": layer_types.FULL}
MATRICES = {
    **{f"qkv.matrices.{i}": f"{x}_proj" for i, x in enumerate("qkv")},
    **{"decay.w_down": "f_a_proj", "decay.w_up": "f_b_proj"},
    **{"gate.w_down": "g_a_proj", "gate.w_up": "g_b_proj"},
    **{"w_beta": "b_proj", "w_out": "o_proj"},
}


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Kimi Linear config.json."""
    hf.ignore(*IGNORED_KEYS)
    for name, value in (("moe_layer_freq", 1), ("moe_router_activation_func", "sigmoid")):
        hf.require_value(name, value)
    for name in ("mla_use_nope", "use_grouped_topk"):
        hf.require_value(name, True)
    hf.require_value("topk_method", "noaux_tc")
    hf.require_value("hidden_act", "silu", "swish")  # The convolutions have it too.
    depth, eps = hf["num_hidden_layers"], hf.get("rms_norm_eps", 1e-5)
    mixers, kda = _read_kda(hf, depth, eps)
    activation = hf.activation("hidden_act", "silu")
    return ModelConfig(
        width=hf["hidden_size"],
        depth=depth,
        layers=shortest_period(
            tuple(map("+".join, zip(mixers, _read_channels(hf, depth), strict=True)))
        ),
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        norm=NormConfig(eps=eps),
        head=HeadConfig(tied=hf.get("tie_word_embeddings", False)),
        kda=kda,
        latent_attention=dataclasses.replace(
            deepseek.read_latent_attention(hf), position_encoding="none"
        ),
        mlp=MlpConfig(width=hf["intermediate_size"], activation=activation),
        moe=MoeConfig(
            router_activation="sigmoid",
            num_experts=hf.get_any("num_experts", "num_local_experts"),
            top_k=hf.get_any("num_experts_per_token", "num_experts_per_tok"),
            width=hf["moe_intermediate_size"],
            activation=activation,
            n_groups=hf.get_first(("num_expert_group", "n_group"), 1),
            top_groups=hf.get("topk_group", 1),
            normalize_weights=hf.get_first(("moe_renormalize", "norm_topk_prob"), True),
            route_scale=hf.get("routed_scaling_factor", 2.446),
            shared_experts=hf.get_first(("num_shared_experts", "n_shared_experts"), 1),
            bias_update_rate=deepseek.BIAS_RATE,
        ),
    )


def _read_kda(hf: HfConfig, depth: int, eps: float) -> tuple[tuple[str, ...], KdaConfig]:
    """Returns the mixer of each layer, and the settings of Kimi Delta Attention."""
    older: JsonObject = hf.get("linear_attn_config", {})
    if unknown := sorted({*older} - {*LINEAR_KEYS, *LISTS}):
        raise hf.unsupported_error("linear_attn_config", f"it has no option {', '.join(unknown)}")
    types = [layer_types.FULL if i and i % 4 == 0 else layer_types.LINEAR for i in range(depth)]
    if {*LISTS} <= {*older}:
        listed = {i: kind for name, kind in LISTS.items() for i in older[name]}
        if sorted(listed) != list(range(1, depth + 1)):
            raise hf.unsupported_error("linear_attn_config", f"must list the layers 1 to {depth}")
        types = [listed[i] for i in range(1, depth + 1)]
    K, H, width = (
        older.get(name, hf.get(new_name, default))
        for (name, new_name), default in zip(LINEAR_KEYS.items(), (128, 32, 4), strict=True)
    )
    kda = KdaConfig(
        heads=H, key_dim=K, value_dim=K, gate_bias=False, conv_width=width, norm_eps=eps
    )
    return layer_types.read(hf, types, MIXERS), kda


def _read_channels(hf: HfConfig, depth: int) -> list[str]:
    """Returns the channel of each layer."""
    num_dense = hf.get("first_k_dense_replace", 1)
    default = ["dense" if i < num_dense else "sparse" for i in range(depth)]
    types = hf.get("mlp_layer_types", default)
    if len(types) != depth or not {*types} <= {*CHANNELS}:
        raise hf.unsupported_error(
            "mlp_layer_types", f"must be a list of {depth}, each one of {', '.join(CHANNELS)}"
        )
    return [CHANNELS[name] for name in types]


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Kimi Linear.

    Raises:
        LookupError: if a layer has no channel.
    """
    a, m, D = part_or_default(config, deepseek.MIXER), part_or_default(config, "moe"), config.width
    kda = part_or_default(config, "kda")
    H, K, _ = kda.head_shape(D)
    names = {channel: name for name, channel in CHANNELS.items()}
    return {
        "hidden_size": D,
        "num_hidden_layers": config.depth,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.head.tied,
        **deepseek.latent_attention_to_hf(a, D),
        "layer_types": layer_types.write(config, MIXERS),
        "linear_head_dim": K,
        "linear_num_heads": H,
        "linear_conv_kernel_dim": kda.conv_width,
        "mlp_layer_types": [names[spec.channel] for spec in config.layer_layout().layer_specs()],
        "intermediate_size": part_or_default(config, "mlp").inner_dim(D),
        "hidden_act": activation_name(m.activation),
        "num_experts": m.num_experts,
        "num_experts_per_token": m.top_k,
        "num_shared_experts": deepseek.count_shared_experts(m, D),
        "moe_intermediate_size": m.inner_dim(D),
        "moe_renormalize": m.normalize_weights,
        "num_expert_group": m.n_groups,
        "topk_group": m.top_groups or m.n_groups,
        "routed_scaling_factor": m.route_scale,
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Kimi Linear."""
    return (
        *EMBEDDING_MAP,
        *(
            TensorMap((f"{OURS}.{ours}",), f"{HF}.{theirs}.weight", TRANSPOSED)
            for ours, theirs in MATRICES.items()
        ),
        *(
            TensorMap((f"{OURS}.qkv.convs.{i}.w",), f"{HF}.{x}_conv1d.weight", CONV1D)
            for i, x in enumerate("qkv")
        ),
        TensorMap((f"{OURS}.log_a",), f"{HF}.A_log", PER_HEAD),
        identity(f"{OURS}.b_dt", f"{HF}.dt_bias"),
        identity(f"{OURS}.norm", f"{HF}.o_norm.weight"),
        *deepseek.latent_attention_map(config),
        *NORM_MAP,
        *mlp_map(f"{HF_LAYER}mlp"),
        *deepseek.moe_map(f"{HF_LAYER}block_sparse_moe", "w1", "w3", "w2"),
        *HEAD_MAP,
    )


KIMI_LINEAR = HfFamily(
    *("kimi_linear", "KimiLinearForCausalLM", read, write, name_map),
    hf_defaults={"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "routed_scaling_factor": 2.446},
    hf_ids={"pad_token_id": 163839, "bos_token_id": 163584, "eos_token_id": 163586},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
