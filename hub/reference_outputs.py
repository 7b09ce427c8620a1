"""Computes the outputs of a checkpoint under the names that its reference implementation uses.

Inputs: `input_ids`, `attention_mask`, `token_type_ids`, `decoder_input_ids`,
`decoder_attention_mask`, and `prompt_ids`, from which greedy decoding starts. Outputs: `logits`,
`last_hidden_state`, `encoder_last_hidden_state`, `pooler_output`, `seq_relationship_logits`,
`router_logits.LAYER` and `router_combine.LAYER` ([tokens, experts]; an encoder-decoder has the
prefixes `encoder_` and `decoder_`), `greedy_ids` and `greedy_logits` (16 tokens; the model
recomputes the full row for each of them).
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from arch import Model, SequenceInfo
from arch.channels.moe import MoE
from arch.weighted_sum import AuxMetrics
from hub.family import HfFamily

GENERATED_TOKENS = 16  # length of greedy decoding


class RouterLog:
    """Collects (router logits, combine weights) in the order of the layers."""

    def __init__(self) -> None:
        self.outputs: list[tuple[Array, Array]] = []


class RouterRecorder(nnx.Module):
    """An MoE channel that also records its routing in `log`."""

    def __init__(self, channel: MoE, log: RouterLog):
        self.channel, self.log = channel, log

    def __call__(
        self, x: Array, seq: SequenceInfo, *, key: Array | None = None
    ) -> tuple[Array, AuxMetrics]:
        """Records the routing of `x` and returns the output of the channel."""
        routes, _, _ = self.channel.route(x, seq, None)
        one_hot = routes.experts[..., None] == jnp.arange(self.channel.cfg.num_experts)
        combine = jnp.sum(one_hot * routes.weights[..., None], axis=2)
        self.log.outputs.append((self.channel.logits(x), combine))
        return self.channel(x, seq, key=key)


def compute_outputs(
    model: Model,
    family: HfFamily,
    pad_id: int,
    decoder_start_id: int,
    inputs: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Computes all outputs of a model for the given inputs.

    Args:
        model: the model; it must not scan over layers if it has experts.
        family: the family of the model.
        pad_id: the id of padding.
        decoder_start_id: the first token of a decoder.
        inputs: arrays by name, as in the docstring of this module.
    """
    rows = {name: jnp.asarray(value, jnp.int32) for name, value in inputs.items()}
    prompt = rows.pop("prompt_ids", None)
    outputs = jax.jit(functools.partial(_forward, family=family, pad_id=pad_id))(model, rows)
    if prompt is not None and family.task != "masked":
        decode = functools.partial(
            _greedy_decode, family=family, pad_id=pad_id, decoder_start_id=decoder_start_id
        )
        outputs |= jax.jit(decode)(model, prompt)
    return {name: np.asarray(value) for name, value in outputs.items()}


def make_sequence(
    family: HfFamily,
    ids: Int[Array, "B T"],
    mask: Int[Array, "B T"],
    pad_id: int,
    token_type_ids: Array | None = None,
) -> SequenceInfo:
    """Returns the description of padded rows under the position numbering of a family."""
    if family.position_numbering == "column":
        last = jnp.max(jnp.where(mask != 0, jnp.arange(ids.shape[1]), 0))
        positions = jnp.broadcast_to(jnp.minimum(jnp.arange(ids.shape[1]), last), ids.shape)
    else:
        counted = (ids != pad_id) if family.position_numbering == "ids" else mask != 0
        positions = jnp.where(
            counted, jnp.cumsum(counted, axis=1) - 1, -int(family.position_numbering == "ids")
        )
    causal, segment_ids, key_mask = family.task != "masked", (mask != 0).astype(jnp.int32), None
    if family.padding_matters:
        segment_ids, key_mask = jnp.ones_like(segment_ids), mask != 0
    positions = positions.astype(jnp.int32)
    return SequenceInfo(
        positions, segment_ids, None, causal, token_type_ids=token_type_ids, key_mask=key_mask
    )


def _forward(
    model: Model, rows: dict[str, Array], *, family: HfFamily, pad_id: int
) -> dict[str, Array]:
    ids, log = rows["input_ids"], RouterLog()
    mask = rows.get("attention_mask", jnp.ones_like(ids))
    seq = make_sequence(family, ids, mask, pad_id, rows.get("token_type_ids"))
    model, outputs, source = _with_recorders(model, log), {}, None
    if family.task == "seq2seq":
        source = ids, _bidirectional(seq)
        ids = rows["decoder_input_ids"]
        mask = rows.get("decoder_attention_mask", jnp.ones_like(ids))
        seq = make_sequence(family, ids, mask, pad_id)
        outputs["encoder_last_hidden_state"], _ = model.encode(*source)
        log.outputs.clear()  # the call below encodes the source again
    hidden, _, _ = model(ids, seq, source=source)
    outputs["logits"] = model.logits(hidden)[..., : model.config.vocab_size]
    outputs["last_hidden_state"] = (
        model.features(hidden) if model.config.embed.factorized_width else hidden
    )
    if model.pooler is not None:
        outputs["pooler_output"], scores = model.pooler(hidden)
        outputs |= {} if scores is None else {"seq_relationship_logits": scores}
    for name, (logits, combine) in zip(_router_names(model), log.outputs, strict=True):
        stack, layer = name
        outputs[f"{stack}router_logits.{layer}"] = logits.reshape(-1, logits.shape[-1])
        outputs[f"{stack}router_combine.{layer}"] = combine.reshape(-1, logits.shape[-1])
    return outputs


def _greedy_decode(
    model: Model,
    prompt: Int[Array, "B P"],
    *,
    family: HfFamily,
    pad_id: int,
    decoder_start_id: int,
) -> dict[str, Array]:
    """Decodes greedily in rows of the final length, whose later positions are padding."""
    B, P = prompt.shape
    source = None
    if family.task == "seq2seq":
        seq = make_sequence(family, prompt, jnp.ones_like(prompt), pad_id)
        source = prompt, _bidirectional(seq)
        prompt, P = jnp.full((B, 1), decoder_start_id, jnp.int32), 1
    T = P + GENERATED_TOKENS - 1

    def body(ids: Array, n: Array) -> tuple[Array, tuple[Array, Array]]:
        mask = jnp.broadcast_to(jnp.arange(T) < n, (B, T)).astype(jnp.int32)
        hidden, _, _ = model(ids, make_sequence(family, ids, mask, pad_id), source=source)
        last = jax.lax.dynamic_index_in_dim(hidden, n - 1, axis=1)
        logits = model.logits(last)[:, 0, : model.config.vocab_size]
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        ids = jnp.where(jnp.arange(T) == n, token[:, None], ids)
        return ids, (token, logits)

    ids = jnp.pad(prompt, ((0, 0), (0, T - P)))
    _, (tokens, logits) = jax.lax.scan(body, ids, P + jnp.arange(GENERATED_TOKENS))
    return {"greedy_ids": tokens.T, "greedy_logits": jnp.moveaxis(logits, 0, 1)}


def _bidirectional(seq: SequenceInfo) -> SequenceInfo:
    return dataclasses.replace(seq, causal=False)


def _with_recorders(model: Model, log: RouterLog) -> Model:
    """Returns a copy of the model whose routers are recorded in `log`."""
    model = jax.tree.map(lambda leaf: leaf, model)
    for stack in (model.encoder, model.stack):
        for group in () if stack is None else (stack.first, stack.blocks, stack.last):
            for block in group:
                if isinstance(block.channel, MoE):
                    block.channel = RouterRecorder(block.channel, log)
    return model


def _router_names(model: Model) -> list[tuple[str, int]]:
    config, has_encoder = model.config, model.encoder is not None
    names = []
    for stack, layout in (
        ("encoder_", config.encoder_layout() if has_encoder else None),
        ("decoder_" if has_encoder else "", config.layer_layout()),
    ):
        for layer, spec in enumerate(layout.layer_specs() if layout else ()):
            names += [(stack, layer)] if spec.channel == "moe" else []
    return names


def largest_difference(
    actual: Float[np.ndarray, "..."], expected: Float[np.ndarray, "..."], is_token: np.ndarray
) -> float:
    """Returns the largest difference where `is_token`, in units of the RMS of `expected` there."""
    actual, expected = actual[is_token].astype(np.float64), expected[is_token].astype(np.float64)
    return float(np.abs(actual - expected).max() / np.sqrt(np.mean(np.square(expected))))
