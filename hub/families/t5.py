"""T5 1.0 and 1.1 (arXiv:1910.10683), and Switch Transformers (arXiv:2101.03961).

The head is `lm_head.weight` where the file has one, else the embedding; version 5 of the reader
writes `tie_word_embeddings` true in any case and tells the two apart by `scale_decoder_outputs`.
Scores are not scaled. Switch's experts take a fixed number of tokens of a row, first come, first
served, padding too.
"""

import dataclasses
from typing import Any

from arch import ModelConfig
from arch.attention import AttentionConfig
from arch.config import EncoderConfig
from arch.embedding import HeadConfig
from arch.mlp import MlpConfig
from arch.moe import MoeConfig
from arch.norms import NormConfig
from arch.positions import PositionsConfig
from hub.family import Family, part, shortest
from hub.keys import ACTIVATIONS, Keys, activation_name
from hub.layouts import LINEAR, Tie, linear, norm, same

BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


def frame(k: Keys, scaled: bool) -> ModelConfig:
    """What both have in common."""
    D, H, K = k["d_model"], k["num_heads"], k.get("d_kv", 64)
    k.only("is_encoder_decoder", True)
    k.unused("n_positions", "tie_word_embeddings")
    heads = AttentionConfig(
        heads=H, head_width=0 if H * K == D else K, scale=1.0, position="relative"
    )
    return ModelConfig(
        width=D,
        depth=k.get("num_decoder_layers", k["num_layers"]),
        vocab=k["vocab_size"],
        vocab_multiple=1,
        encoder=EncoderConfig(depth=k["num_layers"]),
        positions=PositionsConfig(
            buckets=k.get("relative_attention_num_buckets", 32),
            distance=k.get("relative_attention_max_distance", 128),
        ),
        norm=NormConfig(eps=k.get("layer_norm_epsilon", 1e-6)),
        head=HeadConfig(tied=not k.holds("lm_head.weight"), scale=D**-0.5 if scaled else 1.0),
        attention=heads,
        cross=dataclasses.replace(heads, position="none"),
        mlp=MlpConfig(width=k.get("d_ff", 2048), gated=False, activation="relu"),
    )


def read_t5(k: Keys) -> ModelConfig:
    tied = k.get("tie_word_embeddings", True)
    config = frame(k, k.get("scale_decoder_outputs", tied))
    text = k.get("feed_forward_proj", "relu")
    gate, _, name = text.rpartition("-")
    name = "gelu_new" if text == "gated-gelu" else name
    if gate not in ("", "gated") or name not in ACTIVATIONS:
        raise k.refused("feed_forward_proj", f"known: gated- or not, {', '.join(ACTIVATIONS)}")
    # The reference heeds these two before it heeds that one.
    k.only("is_gated_act", bool(gate))
    if k.activation("dense_act_fn", name) != ACTIVATIONS[name]:
        raise k.refused("dense_act_fn", f"feed_forward_proj {text!r} implies {name!r}")
    mlp = dataclasses.replace(config.mlp, gated=bool(gate), activation=ACTIVATIONS[name])
    return dataclasses.replace(config, mlp=mlp)


def write_t5(config: ModelConfig) -> dict[str, Any]:
    m = part(config, "mlp")
    name = activation_name(m.activation)
    name = "gelu" if m.gated and name == "gelu_new" else name
    scaled = config.head.scale != 1.0
    return _words(config) | {
        "d_ff": m.size(config.width),
        "feed_forward_proj": f"gated-{name}" if m.gated else name,
        "tie_word_embeddings": config.head.tied,
        "scale_decoder_outputs": scaled,
    }


def read_switch(k: Keys) -> ModelConfig:
    config = frame(k, k.get("tie_word_embeddings", True))
    k.only("router_ignore_padding_tokens", False)
    k.only("router_dtype", "float32")
    k.only("feed_forward_proj", "relu")
    k.only("is_gated_act", False)
    k.unused("router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise")
    k.unused("add_router_probs")
    act, slots = k.activation("dense_act_fn", "relu"), k["expert_capacity"]
    if slots < 1:
        raise k.refused("expert_capacity", "known: 1 or more; with 0 no token meets an expert")
    moe = MoeConfig(
        experts=k["num_experts"],
        top_k=1,
        width=config.mlp.width,
        gated=False,
        activation=act,
        router_bias=k.get("router_bias", False),
        normalize=False,
        slots=slots,
    )
    encoder = _sparse(k, "encoder", config.encoder.depth)
    return dataclasses.replace(
        config,
        layers=_sparse(k, "decoder", config.depth),
        encoder=dataclasses.replace(config.encoder, layers=encoder),
        mlp=dataclasses.replace(config.mlp, activation=act),
        moe=moe,
    )


def write_switch(config: ModelConfig) -> dict[str, Any]:
    m = part(config, "moe")
    return _words(config) | {
        "d_ff": m.size(config.width),
        "dense_act_fn": activation_name(m.activation),
        "num_experts": m.experts,
        **({"expert_capacity": m.slots} if m.slots else {}),  # without it, 64
        "router_bias": m.router_bias,
        "num_sparse_encoder_layers": _sparse_count(config.encoder_plan().entries()),
        "num_sparse_decoder_layers": _sparse_count(config.plan().entries()),
        "tie_word_embeddings": config.head.scale != 1.0,
    }


def _sparse(k: Keys, stack: str, depth: int) -> tuple[str, ...]:
    """Layers 1, 1 + step, ... have experts; all if the step is 1."""
    count = k.get(f"num_sparse_{stack}_layers", 3)
    step = depth // count if count else depth
    k.only(f"{stack}_sparse_step", None, step)
    sparse = [step == 1 or (step > 0 and i % step == 1) for i in range(depth)]
    return shortest(tuple(f"attention+{'moe' if one else 'mlp'}" for one in sparse))


def _sparse_count(entries: tuple) -> int:
    return sum(e.channel == "moe" for e in entries)


def _words(config: ModelConfig) -> dict[str, Any]:
    H, _, K = part(config, "attention").shape(config.width)
    return {
        "is_encoder_decoder": True,
        "d_model": config.width,
        "num_layers": config.encoder.depth,
        "num_decoder_layers": config.depth,
        "num_heads": H,
        "d_kv": K,
        "vocab_size": config.vocab,
        "relative_attention_num_buckets": config.positions.buckets,
        "relative_attention_max_distance": config.positions.distance,
        "layer_norm_epsilon": config.norm.eps,
    }


def _stack(ours: str, theirs: str, last: int) -> tuple[Tie, ...]:
    """One stack, whose channels are sublayer `last` of a block."""
    o, t = ours + ".{i}.", theirs + ".block.{i}.layer."
    names = [(f"{o}attention", f"{t}0.SelfAttention"), (f"{o}cross", f"{t}1.EncDecAttention")]
    heads = (linear(f"{a}.w_{n}", f"{b}.{n}") for a, b in names for n in "qkvo")
    expert = f"{t}{last}.mlp.experts.expert_" + "{e}."
    return (
        *(tie for pair in heads for tie in pair),
        same(f"{ours}.relative.table", f"{theirs}.block.0.{BIAS}"),
        *norm(f"{o}norm_mixer", f"{t}0.layer_norm"),
        *norm(f"{o}norm_cross", f"{t}1.layer_norm"),
        *norm(f"{o}norm_channel", f"{t}{last}.layer_norm"),
        *linear(f"{o}moe.w_router", f"{t}{last}.mlp.router.classifier"),
        Tie((f"{o}moe.w_in",), f"{expert}wi.weight", LINEAR),
        Tie((f"{o}moe.w_out",), f"{expert}wo.weight", LINEAR),
        *norm(f"{ours}.norm", f"{theirs}.final_layer_norm"),
    )


def _both(mlp: str, gated: bool) -> tuple[Tie, ...]:
    found: list[Tie] = [same("embed.table", "shared.weight")]
    for ours, theirs, last in (("encoder", "encoder", 1), ("stack", "decoder", 2)):
        found += _stack(ours, theirs, last)
        o, t = ours + ".{i}.mlp.", theirs + ".block.{i}.layer." + f"{last}.{mlp}."
        found += linear(f"{o}w_gate", f"{t}wi_0")
        found += linear(f"{o}w_in", f"{t}wi_1" if gated else f"{t}wi")
        found += linear(f"{o}w_out", f"{t}wo")
    return (*found, same("head.table", "lm_head.weight"))


def ties_t5(config: ModelConfig) -> tuple[Tie, ...]:
    return _both("DenseReluDense", part(config, "mlp").gated)


def ties_switch(config: ModelConfig) -> tuple[Tie, ...]:
    return _both("mlp", False)


SHARED = tuple(
    (f"{stack}.embed_tokens.weight", "shared.weight") for stack in ("encoder", "decoder")
)


def usual(config: ModelConfig) -> dict[str, Any]:
    return {"decoder_start_token_id": 0}  # their padding


def twins_t5(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    return () if config.head.tied else SHARED


def twins_switch(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    return () if config.head.scale != 1.0 else SHARED


def lacks_switch(config: ModelConfig) -> list[str]:
    """Its head is tied and scaled, or neither."""
    alone = config.head.tied and config.head.scale == 1.0
    return ["head.tied True without a head.scale, not False"] if alone else []


UNUSED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
T5 = Family(
    *("t5", "T5ForConditionalGeneration", read_t5, write_t5, ties_t5),
    ignored=UNUSED,
    copies=SHARED,
    twins=twins_t5,
    usual=usual,
    task="seq2seq",
)
SWITCH = Family(
    "switch_transformers",
    "SwitchTransformersForConditionalGeneration",
    read_switch,
    write_switch,
    ties_switch,
    defaults={"num_decoder_layers": 12, "expert_capacity": 64},
    ignored=UNUSED,
    copies=SHARED,
    twins=twins_switch,
    lacks=lacks_switch,
    usual=usual,
    task="seq2seq",
    padding_sees=True,
)
