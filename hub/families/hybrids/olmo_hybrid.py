"""Maps OLMo Hybrid (allenai.org/olmo): Gated DeltaNet in three of four layers, and attention.

Layers of Gated DeltaNet have norms before their branches, and eigenvalues down to -1. Layers of
attention are those of OLMo 2, with norms behind their branches, and in released models without
positions.
"""

import dataclasses

from arch import ModelConfig
from arch.layers.dt import DtConfig
from arch.layers.rope import RopeConfig
from arch.mixers.gated_deltanet import GatedDeltaNetConfig
from hub import layer_types, rotary
from hub.families import olmo
from hub.families.hybrids.qwen3_next import MIXERS, deltanet_to_hf, read_deltanet
from hub.families.llama import HF_LAYER, LAYER, TIED_EMBEDDING, base_to_hf, mlp_to_hf, read_decoder
from hub.family import HfFamily, find_part, shortest_period
from hub.hf_config import HfConfig
from hub.tensor_transforms import CONV1D, TRANSPOSED, TensorMap, identity, norm
from settings.json_types import JsonObject

OURS, HF = f"{LAYER}gated_deltanet", f"{HF_LAYER}linear_attn"
DELTANET_EPS = 1e-5  # Of the output norm, whatever config.json states.
BEHIND = "branch_norm"  # The variant of layers with norms behind their branches.
LAYERS = {"gated_deltanet": "gated_deltanet+mlp", "attention": f"attention@{BEHIND}+mlp"}
MATRICES = {
    **{f"w_{x}": f"{x}_proj" for x in "qkv"},
    **{"w_gate": "g_proj", "w_beta": "b_proj", "w_dt": "a_proj", "w_out": "o_proj"},
}
VECTORS = {"log_a": "A_log", "b_dt": "dt_bias", "norm": "o_norm.weight"}
NAME_MAP = (
    *olmo.NAME_MAP,
    *norm(f"{LAYER}norm_mixer", f"{HF_LAYER}attention_layer_norm"),
    *norm(f"{LAYER}norm_channel", f"{HF_LAYER}feedforward_layer_norm"),
    *(
        TensorMap((f"{OURS}.{ours}",), f"{HF}.{theirs}.weight", TRANSPOSED)
        for ours, theirs in MATRICES.items()
    ),
    *(
        TensorMap((f"{OURS}.convs.{i}.w",), f"{HF}.{x}_conv1d.weight", CONV1D)
        for i, x in enumerate("qkv")
    ),
    *(identity(f"{OURS}.{ours}", f"{HF}.{theirs}") for ours, theirs in VECTORS.items()),
)


def read(hf: HfConfig) -> ModelConfig:
    """Returns the model config of an OLMo Hybrid config.json."""
    hf.ignore("linear_a_log_min", "linear_a_log_max")
    has_positions = rotary.has_positions(hf)
    config = read_decoder(hf, None if has_positions else RopeConfig())
    config = olmo.with_norms(config, hf)
    depth = config.depth
    default = [layer_types.FULL if i % 4 == 3 else layer_types.LINEAR for i in range(depth)]
    default[-1] = default[-1] if layer_types.FULL in default else layer_types.FULL
    mixers = layer_types.read(hf, default, MIXERS)
    return dataclasses.replace(
        config,
        layers=shortest_period(tuple(LAYERS[mixer] for mixer in mixers)),
        variants={BEHIND: {"block": {"wiring": "branch_norm"}}},
        attention=dataclasses.replace(
            config.attention, position_encoding="rope" if has_positions else "none"
        ),
        gated_deltanet=_read_deltanet(hf),
    )


def _read_deltanet(hf: HfConfig) -> GatedDeltaNetConfig:
    """Reads Gated DeltaNet, in which each head has a key of its own.

    Raises:
        ConfigError: if there are fewer keys than values.
    """
    m = read_deltanet(hf, DELTANET_EPS)
    if m.key_heads != m.heads:
        raise hf.unsupported_error("linear_num_key_heads", f"must be {m.heads}, as of the values")
    dt = DtConfig(
        dt_min=hf.get("linear_dt_min", 1e-3),
        dt_max=hf.get("linear_dt_max", 1e-1),
        dt_init_floor=hf.get("linear_dt_init_floor", 1e-4),
    )
    negative = hf.get("linear_allow_neg_eigval", True)
    return dataclasses.replace(m, key_heads=0, allow_negative_eigenvalues=negative, dt=dt)


def write(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for OLMo Hybrid, which has layers of both kinds."""
    a, m, D = find_part(config, "attention"), find_part(config, "gated_deltanet"), config.width
    K = a.head_shape(D)[2]
    is_rotated = a.position_encoding == "rope"
    return {
        **base_to_hf(config, a),
        **(rotary.to_hf(a.rope, K) if is_rotated else rotary.no_positions_to_hf()),
        **mlp_to_hf(find_part(config, "mlp"), D),
        **deltanet_to_hf(m, D),
        "attention_bias": a.bias_qkv,
        "layer_types": layer_types.write(config, MIXERS),
        "linear_allow_neg_eigval": m.allow_negative_eigenvalues,
    }


def name_map(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of OLMo Hybrid."""
    return NAME_MAP


OLMO_HYBRID = HfFamily(
    *("olmo_hybrid", "OlmoHybridForCausalLM", read, write, name_map),
    hf_defaults={"rope_theta": 10000.0},
    hf_ids={"pad_token_id": 100277, "eos_token_id": 100257},
    prefix="model.",
    tied_tensors=TIED_EMBEDDING,
)
