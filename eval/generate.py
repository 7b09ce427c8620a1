"""Text from a model: one prefill, then a step a token.

Prompts of unequal length are padded on the left; positions and attention leave the padding out, so
a row is continued as if it were alone.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from arch import Model, Sequence
from training.distributed import whole


class Sampling(NamedTuple):
    temperature: float = 1.0  # 0: the likeliest token
    top_k: int = 0  # of the likeliest tokens; 0: all
    top_p: float = 1.0  # of the likeliest tokens that hold this share (arXiv:1904.09751)
    min_p: float = (
        0.0  # of tokens at least this share as likely as the likeliest (arXiv:2407.01082)
    )


GREEDY = Sampling(temperature=0.0)


def generate(
    model: Model,
    prompts: list[np.ndarray],
    steps: int,
    *,
    key: Array,
    stop: int | tuple[int, ...] = -1,
    sampling: Sampling = GREEDY,
    pad: int = 0,
) -> list[np.ndarray]:
    """Continue each prompt by at most `steps` tokens, up to and without one of `stop`.

    Prompts are padded to the longest, or to `pad` tokens: each new length is a new program.
    """
    length = max(pad, *map(len, prompts))
    tokens = np.zeros((len(prompts), length), np.int32)
    valid = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :], valid[row, length - len(prompt) :] = prompt, True
    out = np.asarray(whole(_generate(model, tokens, valid, key, steps, sampling)))
    stops = np.atleast_1d(stop)
    return [_until(row, stops) for row in out]


@functools.partial(jax.jit, static_argnames=("steps", "sampling"))
def _generate(
    model: Model,
    tokens: Int[Array, "B T"],
    valid: Any,
    key: Array,
    steps: int,
    sampling: Sampling,
) -> Int[Array, "B N"]:
    B, T = tokens.shape
    segments = valid.astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    state = model.start(B, T + steps)
    hidden, _, filled = model(tokens, Sequence(positions, segments), state=state)
    ones = jnp.ones((B, 1), jnp.int32)

    def body(carry: Any, index: Array) -> tuple[Any, Array]:
        last, place, state = carry
        logits = model.logits(last)[:, 0]
        token = choose(logits, jax.random.fold_in(key, index), sampling)
        seq = Sequence(place[:, None], ones)
        hidden, _, state = model(token[:, None], seq, state=state)
        return (hidden, place + 1, state), token

    carry = hidden[:, -1:], positions[:, -1] + 1, filled
    return jax.lax.scan(body, carry, jnp.arange(steps))[1].T


def choose(logits: Float[Array, "B V"], key: Array, sampling: Sampling) -> Int[Array, " B"]:
    """One token a row."""
    if not sampling.temperature:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, jnp.finfo(logits.dtype).min, logits)
    if sampling.top_p < 1:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        chance = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(chance, axis=-1) - chance  # the likeliest token always stays
        count = jnp.sum(before < sampling.top_p, axis=-1, keepdims=True)
        least = jnp.take_along_axis(ranked, count - 1, axis=-1)
        logits = jnp.where(logits < least, jnp.finfo(logits.dtype).min, logits)
    if sampling.min_p:
        top = jnp.max(logits, axis=-1, keepdims=True)
        least = top + jnp.log(sampling.min_p)
        logits = jnp.where(logits < least, jnp.finfo(logits.dtype).min, logits)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def _until(row: np.ndarray, stops: np.ndarray) -> np.ndarray:
    found = np.flatnonzero(np.isin(row, stops))
    return row[: found[0]] if len(found) else row
