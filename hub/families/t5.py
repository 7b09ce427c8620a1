"""Maps T5 1.0 and 1.1 (arXiv:1910.10683), and Switch Transformers (arXiv:2101.03961).

The head is `lm_head.weight` if the file has this tensor, and otherwise the embedding. Version 5 of
transformers always writes `tie_word_embeddings` true, and distinguishes the two cases by
`scale_decoder_outputs`. Attention scores are not scaled. In Switch, each expert takes a limited
number of tokens of a row in their order, and padding counts as tokens.
"""

import dataclasses

from arch import ModelConfig
from arch.channels.mlp import MlpConfig
from arch.channels.moe import MoeConfig
from arch.config import EncoderConfig
from arch.layers.embedding import HeadConfig
from arch.layers.norms import NormConfig
from arch.layers.positions import PositionsConfig
from arch.mixers.attention import AttentionConfig
from hub.family import HfFamily, find_part, shortest_period
from hub.hf_config import ACTIVATIONS, HfConfig, activation_name
from hub.tensor_transforms import TRANSPOSED, TensorMap, identity, linear, norm
from settings.json_types import JsonObject

RELATIVE_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


def read_base(hf: HfConfig, scale_head: bool) -> ModelConfig:
    """Returns the settings that both families share."""
    D, H, K = hf["d_model"], hf["num_heads"], hf.get("d_kv", 64)
    hf.require_value("is_encoder_decoder", True)
    hf.ignore("n_positions", "tie_word_embeddings")
    attention = AttentionConfig(
        heads=H, head_dim=0 if H * K == D else K, scale=1.0, position_encoding="relative"
    )
    return ModelConfig(
        width=D,
        depth=hf.get("num_decoder_layers", hf["num_layers"]),
        vocab_size=hf["vocab_size"],
        vocab_multiple=1,
        encoder=EncoderConfig(depth=hf["num_layers"]),
        positions=PositionsConfig(
            num_buckets=hf.get("relative_attention_num_buckets", 32),
            max_distance=hf.get("relative_attention_max_distance", 128),
        ),
        norm=NormConfig(eps=hf.get("layer_norm_epsilon", 1e-6)),
        head=HeadConfig(
            tied=not hf.has_tensor("lm_head.weight", if_unknown=not scale_head),
            scale=D**-0.5 if scale_head else 1.0,
        ),
        attention=attention,
        cross_attention=dataclasses.replace(attention, position_encoding="none"),
        mlp=MlpConfig(width=hf.get("d_ff", 2048), gated=False, activation="relu"),
    )


def read_t5(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a T5 config.json."""
    tied = hf.get("tie_word_embeddings", True)
    config = read_base(hf, hf.get("scale_decoder_outputs", tied))
    text = hf.get("feed_forward_proj", "relu")
    gate, _, name = text.rpartition("-")
    name = "gelu_new" if text == "gated-gelu" else name
    if gate not in ("", "gated") or name not in ACTIVATIONS:
        raise hf.unsupported_error(
            "feed_forward_proj", f"known: an optional gated-, and one of {', '.join(ACTIVATIONS)}"
        )
    # In the reference these two keys take precedence over feed_forward_proj.
    hf.require_value("is_gated_act", bool(gate))
    if hf.activation("dense_act_fn", name) != ACTIVATIONS[name]:
        raise hf.unsupported_error("dense_act_fn", f"feed_forward_proj {text!r} implies {name!r}")
    mlp = dataclasses.replace(config.mlp, gated=bool(gate), activation=ACTIVATIONS[name])
    return dataclasses.replace(config, mlp=mlp)


def write_t5(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for T5."""
    m = find_part(config, "mlp")
    name = activation_name(m.activation)
    name = "gelu" if m.gated and name == "gelu_new" else name
    return _base_to_hf(config) | {
        "d_ff": m.inner_dim(config.width),
        "feed_forward_proj": f"gated-{name}" if m.gated else name,
        "tie_word_embeddings": config.head.tied,
        "scale_decoder_outputs": config.head.scale != 1.0,
    }


def read_switch(hf: HfConfig) -> ModelConfig:
    """Returns the model config of a Switch Transformers config.json."""
    config = read_base(hf, hf.get("tie_word_embeddings", True))
    hf.require_value("router_ignore_padding_tokens", False)
    hf.require_value("router_dtype", "float32")
    hf.require_value("feed_forward_proj", "relu")
    hf.require_value("is_gated_act", False)
    hf.ignore("router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise")
    hf.ignore("add_router_probs")
    act, capacity = hf.activation("dense_act_fn", "relu"), hf["expert_capacity"]
    if capacity < 1:
        raise hf.unsupported_error(
            "expert_capacity", "known: 1 or more; with 0, experts process no token"
        )
    moe = MoeConfig(
        num_experts=hf["num_experts"],
        top_k=1,
        width=config.mlp.width,
        gated=False,
        activation=act,
        router_bias=hf.get("router_bias", False),
        normalize_weights=False,
        expert_capacity=capacity,
    )
    encoder = _read_layers(hf, "encoder", config.encoder.depth)
    return dataclasses.replace(
        config,
        layers=_read_layers(hf, "decoder", config.depth),
        encoder=dataclasses.replace(config.encoder, layers=encoder),
        mlp=dataclasses.replace(config.mlp, activation=act),
        moe=moe,
    )


def write_switch(config: ModelConfig) -> JsonObject:
    """Returns the keys of config.json for Switch Transformers."""
    m = find_part(config, "moe")
    return _base_to_hf(config) | {
        "d_ff": m.inner_dim(config.width),
        "dense_act_fn": activation_name(m.activation),
        "num_experts": m.num_experts,
        **(
            {"expert_capacity": m.expert_capacity} if m.expert_capacity else {}
        ),  # a missing key means 64
        "router_bias": m.router_bias,
        "num_sparse_encoder_layers": _count_moe_layers(config.encoder_layout().layer_specs()),
        "num_sparse_decoder_layers": _count_moe_layers(config.layer_layout().layer_specs()),
        "tie_word_embeddings": config.head.scale != 1.0,
    }


def _read_layers(hf: HfConfig, stack: str, depth: int) -> tuple[str, ...]:
    """Reads the layers of a stack: 1, 1 + step, ... have experts, or all if the step is 1."""
    count = hf.get(f"num_sparse_{stack}_layers", 3)
    step = depth // count if count else depth
    hf.require_value(f"{stack}_sparse_step", None, step)
    is_moe = [step == 1 or (step > 0 and i % step == 1) for i in range(depth)]
    return shortest_period(tuple(f"attention+{'moe' if moe else 'mlp'}" for moe in is_moe))


def _count_moe_layers(specs: tuple) -> int:
    return sum(spec.channel == "moe" for spec in specs)


def _base_to_hf(config: ModelConfig) -> JsonObject:
    H, _, K = find_part(config, "attention").head_shape(config.width)
    return {
        "is_encoder_decoder": True,
        "d_model": config.width,
        "num_layers": config.encoder.depth,
        "num_decoder_layers": config.depth,
        "num_heads": H,
        "d_kv": K,
        "vocab_size": config.vocab_size,
        "relative_attention_num_buckets": config.positions.num_buckets,
        "relative_attention_max_distance": config.positions.max_distance,
        "layer_norm_epsilon": config.norm.eps,
    }


def _stack_map(param_prefix: str, hf_prefix: str, mlp_index: int) -> tuple[TensorMap, ...]:
    """Returns the tensor names of a stack whose channels are sublayer `mlp_index` of a block."""
    o, t = param_prefix + ".{i}.", hf_prefix + ".block.{i}.layer."
    names = [(f"{o}attention", f"{t}0.SelfAttention"), (f"{o}cross", f"{t}1.EncDecAttention")]
    projections = (linear(f"{a}.w_{n}", f"{b}.{n}") for a, b in names for n in "qkvo")
    expert = f"{t}{mlp_index}.mlp.experts.expert_" + "{e}."
    return (
        *(tensor_map for pair in projections for tensor_map in pair),
        identity(f"{param_prefix}.relative.table", f"{hf_prefix}.block.0.{RELATIVE_BIAS}"),
        *norm(f"{o}norm_mixer", f"{t}0.layer_norm"),
        *norm(f"{o}norm_cross", f"{t}1.layer_norm"),
        *norm(f"{o}norm_channel", f"{t}{mlp_index}.layer_norm"),
        *linear(f"{o}moe.w_router", f"{t}{mlp_index}.mlp.router.classifier"),
        TensorMap((f"{o}moe.w_in",), f"{expert}wi.weight", TRANSPOSED),
        TensorMap((f"{o}moe.w_out",), f"{expert}wo.weight", TRANSPOSED),
        *norm(f"{param_prefix}.norm", f"{hf_prefix}.final_layer_norm"),
    )


def _name_map(hf_mlp: str, gated: bool) -> tuple[TensorMap, ...]:
    maps: list[TensorMap] = [identity("embed.table", "shared.weight")]
    for param_prefix, hf_prefix, mlp_index in (("encoder", "encoder", 1), ("stack", "decoder", 2)):
        maps += _stack_map(param_prefix, hf_prefix, mlp_index)
        o, t = (
            param_prefix + ".{i}.mlp.",
            hf_prefix + ".block.{i}.layer." + f"{mlp_index}.{hf_mlp}.",
        )
        maps += linear(f"{o}w_gate", f"{t}wi_0")
        maps += linear(f"{o}w_in", f"{t}wi_1" if gated else f"{t}wi")
        maps += linear(f"{o}w_out", f"{t}wo")
    return (*maps, identity("head.table", "lm_head.weight"))


def name_map_t5(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of T5."""
    return _name_map("DenseReluDense", find_part(config, "mlp").gated)


def name_map_switch(config: ModelConfig) -> tuple[TensorMap, ...]:
    """Returns the tensor names of Switch Transformers."""
    return _name_map("mlp", False)


SHARED_EMBEDDING = tuple(
    (f"{stack}.embed_tokens.weight", "shared.weight") for stack in ("encoder", "decoder")
)


def export_defaults(config: ModelConfig) -> JsonObject:
    """Returns the first token of a decoder, for models that were not trained in this project."""
    return {"decoder_start_token_id": 0}  # the id of padding


def duplicated_tensors_t5(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    """Returns the copies of the embedding that T5 stores next to an untied head."""
    return () if config.head.tied else SHARED_EMBEDDING


def duplicated_tensors_switch(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    """Returns the copies of the embedding that Switch stores next to an untied head."""
    return () if config.head.scale != 1.0 else SHARED_EMBEDDING


def unsupported_switch(config: ModelConfig) -> list[str]:
    """Returns a text if the head is tied without a scale, which the class cannot compute."""
    is_unscaled = config.head.tied and config.head.scale == 1.0
    return ["head.tied True without a head.scale, not False"] if is_unscaled else []


UNUSED_TENSORS = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
T5 = HfFamily(
    *("t5", "T5ForConditionalGeneration", read_t5, write_t5, name_map_t5),
    ignored_tensors=UNUSED_TENSORS,
    tied_tensors=SHARED_EMBEDDING,
    duplicated_tensors=duplicated_tensors_t5,
    export_defaults=export_defaults,
    task="seq2seq",
)
SWITCH = HfFamily(
    "switch_transformers",
    "SwitchTransformersForConditionalGeneration",
    read_switch,
    write_switch,
    name_map_switch,
    hf_defaults={"num_decoder_layers": 12, "expert_capacity": 64},
    ignored_tensors=UNUSED_TENSORS,
    tied_tensors=SHARED_EMBEDDING,
    duplicated_tensors=duplicated_tensors_switch,
    unsupported=unsupported_switch,
    export_defaults=export_defaults,
    task="seq2seq",
    padding_matters=True,
)
