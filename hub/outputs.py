"""What a checkpoint computes for the inputs of a reference, under the names that a reference uses.

Inputs: `input_ids`, `attention_mask`, `token_type_ids`, `decoder_input_ids`,
`decoder_attention_mask`, and `prompt_ids` to be continued. Outputs: `logits`, `last_hidden_state`,
`encoder_last_hidden_state`, `pooler_output`, `seq_relationship_logits`, `router_logits.LAYER` and
`router_combine.LAYER` ([tokens, experts]; with `encoder_` or `decoder_` before them where there are
both), `greedy_ids` and `greedy_logits` (the whole row anew for each of 16 tokens).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from arch import Model, Sequence
from arch.moe import MoE
from hub.family import Family

GREEDY = 16  # tokens


class Seen:
    """What routers said, in the order of their layers."""

    def __init__(self) -> None:
        self.said: list[tuple[Array, Array]] = []


class Watched(nnx.Module):
    """An MoE channel that tells its routing to `seen`."""

    def __init__(self, channel: MoE, seen: Seen):
        self.channel, self.seen = channel, seen

    def __call__(self, x: Array, seq: Sequence, *, key: Array | None = None) -> Any:
        routes, _, _ = self.channel.route(x, seq, None)
        each = routes.experts[..., None] == jnp.arange(self.channel.cfg.experts)
        combine = jnp.sum(each * routes.weights[..., None], axis=2)
        self.seen.said.append((self.channel.logits(x), combine))
        return self.channel(x, seq, key=key)


def outputs(
    model: Model, family: Family, pad: int, start: int, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """All outputs; `pad` is the id of padding, `start` a decoder's first. `model` is not scanned
    if it has experts."""
    rows = {name: jnp.asarray(value, jnp.int32) for name, value in inputs.items()}
    prompt = rows.pop("prompt_ids", None)
    found = jax.jit(functools.partial(_forward, family=family, pad=pad))(model, rows)
    if prompt is not None and family.task != "masked":
        made = jax.jit(functools.partial(_greedy, family=family, pad=pad, start=start))
        found |= made(model, prompt)
    return {name: np.asarray(value) for name, value in found.items()}


def sequence(
    family: Family,
    ids: Int[Array, "B T"],
    mask: Int[Array, "B T"],
    pad: int,
    types: Array | None = None,
) -> Sequence:
    """The rows as this family numbers their positions."""
    if family.positions == "column":
        last = jnp.max(jnp.where(mask != 0, jnp.arange(ids.shape[1]), 0))
        places = jnp.broadcast_to(jnp.minimum(jnp.arange(ids.shape[1]), last), ids.shape)
    else:
        real = (ids != pad) if family.positions == "ids" else mask != 0
        places = jnp.where(real, jnp.cumsum(real, axis=1) - 1, -int(family.positions == "ids"))
    causal, segments, shown = family.task != "masked", (mask != 0).astype(jnp.int32), None
    if family.padding_sees:
        segments, shown = jnp.ones_like(segments), mask != 0
    places = places.astype(jnp.int32)
    return Sequence(places, segments, None, causal, types=types, shown=shown)


def _forward(model: Model, rows: dict[str, Array], *, family: Family, pad: int) -> dict[str, Array]:
    ids, seen = rows["input_ids"], Seen()
    mask = rows.get("attention_mask", jnp.ones_like(ids))
    seq = sequence(family, ids, mask, pad, rows.get("token_type_ids"))
    model, found, source = _watched(model, seen), {}, None
    if family.task == "seq2seq":
        source = ids, _sides(seq)
        ids = rows["decoder_input_ids"]
        seq = sequence(family, ids, rows.get("decoder_attention_mask", jnp.ones_like(ids)), pad)
        encoded, _ = model.encode(*source)
        found["encoder_last_hidden_state"] = encoded
        seen.said.clear()
    hidden, _, _ = model(ids, seq, source=source)
    found["logits"] = model.logits(hidden)[..., : model.config.vocab]
    found["last_hidden_state"] = model.features(hidden) if model.config.embed.width else hidden
    if model.pooler is not None:
        found["pooler_output"], scores = model.pooler(hidden)
        found |= {} if scores is None else {"seq_relationship_logits": scores}
    for name, (logits, combine) in zip(_routers(model), seen.said, strict=True):
        stack, layer = name
        found[f"{stack}router_logits.{layer}"] = logits.reshape(-1, logits.shape[-1])
        found[f"{stack}router_combine.{layer}"] = combine.reshape(-1, logits.shape[-1])
    return found


def _greedy(
    model: Model, prompt: Int[Array, "B P"], *, family: Family, pad: int, start: int
) -> dict[str, Array]:
    """The likeliest tokens; rows have room for all, and what is not there yet is padding."""
    B, P = prompt.shape
    source = None
    if family.task == "seq2seq":
        source = prompt, _sides(sequence(family, prompt, jnp.ones_like(prompt), pad))
        prompt, P = jnp.full((B, 1), start, jnp.int32), 1
    T = P + GREEDY - 1

    def body(ids: Array, n: Array) -> tuple[Array, tuple[Array, Array]]:
        mask = jnp.broadcast_to(jnp.arange(T) < n, (B, T)).astype(jnp.int32)
        hidden, _, _ = model(ids, sequence(family, ids, mask, pad), source=source)
        last = jax.lax.dynamic_index_in_dim(hidden, n - 1, axis=1)
        logits = model.logits(last)[:, 0, : model.config.vocab]
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        ids = jnp.where(jnp.arange(T) == n, token[:, None], ids)
        return ids, (token, logits)

    ids = jnp.pad(prompt, ((0, 0), (0, T - P)))
    _, (tokens, logits) = jax.lax.scan(body, ids, P + jnp.arange(GREEDY))
    return {"greedy_ids": tokens.T, "greedy_logits": jnp.moveaxis(logits, 0, 1)}


def _sides(seq: Sequence) -> Sequence:
    return dataclasses.replace(seq, causal=False)


def _watched(model: Any, seen: Seen) -> Any:
    """A copy whose routers are watched."""
    model = jax.tree.map(lambda leaf: leaf, model)
    for stack in (model.encoder, model.stack):
        for group in () if stack is None else (stack.first, stack.blocks, stack.last):
            for block in group:
                if isinstance(block.channel, MoE):
                    block.channel = Watched(block.channel, seen)
    return model


def _routers(model: Model) -> list[tuple[str, int]]:
    config, both = model.config, model.encoder is not None
    found = []
    for stack, plan in (
        ("encoder_", config.encoder_plan() if both else None),
        ("decoder_" if both else "", config.plan()),
    ):
        for layer, entry in enumerate(plan.entries() if plan else ()):
            found += [(stack, layer)] if entry.channel == "moe" else []
    return found


def largest_difference(
    got: Float[np.ndarray, "..."], wanted: Float[np.ndarray, "..."], real: np.ndarray
) -> float:
    """Over the positions that are no padding, in units of the RMS of `wanted` there."""
    got, wanted = got[real].astype(np.float64), wanted[real].astype(np.float64)
    return float(np.abs(got - wanted).max() / np.sqrt(np.mean(np.square(wanted))))
