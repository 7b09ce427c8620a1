"""Generates text from a model: one prefill, then one decoding step per token.

Prompts of unequal length are padded on the left. Positions and attention skip the padding, so each
row is continued as if it were alone.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from arch import Model, SequenceInfo
from training.distributed.multihost import to_host


class Sampling(NamedTuple):
    """Holds the parameters of sampling; all filters apply together."""

    temperature: float = 1.0  # Softmax temperature; 0 takes the most likely token.
    top_k: int = 0  # Number of most likely tokens to sample from; 0 allows all.
    # Samples from the most likely tokens that hold this probability mass (arXiv:1904.09751).
    top_p: float = 1.0
    # Least probability of a token relative to the most likely one (arXiv:2407.01082).
    min_p: float = 0.0


GREEDY = Sampling(temperature=0.0)


def generate(
    model: Model,
    prompts: list[np.ndarray],
    max_new_tokens: int,
    *,
    key: Array,
    stop_tokens: int | tuple[int, ...] = -1,
    sampling: Sampling = GREEDY,
    pad_to: int = 0,
) -> list[np.ndarray]:
    """Returns up to `max_new_tokens` new tokens for each prompt, which end before a stop token.

    Prompts are padded to the longest one, or to `pad_to` tokens if that is more. Each new padded
    length compiles a new program.
    """
    length = max(pad_to, *map(len, prompts))
    tokens = np.zeros((len(prompts), length), np.int32)
    is_real = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :], is_real[row, length - len(prompt) :] = prompt, True
    out = np.asarray(to_host(_generate(model, tokens, is_real, key, max_new_tokens, sampling)))
    stops = np.atleast_1d(stop_tokens)
    return [_truncate_at_stop(row, stops) for row in out]


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "sampling"))
def _generate(
    model: Model,
    tokens: Int[Array, "B T"],
    is_real: Bool[Array, "B T"],
    key: Array,
    max_new_tokens: int,
    sampling: Sampling,
) -> Int[Array, "B N"]:
    B, T = tokens.shape
    segment_ids = is_real.astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(segment_ids, axis=1) - 1, 0)
    empty = model.init_state(B, T + max_new_tokens)
    hidden, _, prompt_state = model(tokens, SequenceInfo(positions, segment_ids), state=empty)
    ones = jnp.ones((B, 1), jnp.int32)

    def step(carry: Any, index: Array) -> tuple[Any, Array]:
        hidden, position, state = carry
        logits = model.logits(hidden)[:, 0]
        token = sample_token(logits, jax.random.fold_in(key, index), sampling)
        seq = SequenceInfo(position[:, None], ones)
        hidden, _, state = model(token[:, None], seq, state=state)
        return (hidden, position + 1, state), token

    carry = hidden[:, -1:], positions[:, -1] + 1, prompt_state
    return jax.lax.scan(step, carry, jnp.arange(max_new_tokens))[1].T


def sample_token(logits: Float[Array, "B V"], key: Array, sampling: Sampling) -> Int[Array, " B"]:
    """Samples one token per row."""
    if not sampling.temperature:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k:
        threshold = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < threshold, jnp.finfo(logits.dtype).min, logits)
    if sampling.top_p < 1:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ranked, axis=-1)
        # The sum excludes the token itself, so the most likely token is always allowed.
        mass_before = jnp.cumsum(probs, axis=-1) - probs
        count = jnp.sum(mass_before < sampling.top_p, axis=-1, keepdims=True)
        threshold = jnp.take_along_axis(ranked, count - 1, axis=-1)
        logits = jnp.where(logits < threshold, jnp.finfo(logits.dtype).min, logits)
    if sampling.min_p:
        top = jnp.max(logits, axis=-1, keepdims=True)
        threshold = top + jnp.log(sampling.min_p)
        logits = jnp.where(logits < threshold, jnp.finfo(logits.dtype).min, logits)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def _truncate_at_stop(row: np.ndarray, stop_tokens: np.ndarray) -> np.ndarray:
    stops = np.flatnonzero(np.isin(row, stop_tokens))
    return row[: stops[0]] if len(stops) else row
