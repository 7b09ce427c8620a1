"""Generates tokens from a model: one prefill, then one decoding step per token.

Prompts of unequal length are padded on the left. Positions and attention skip the padding, so each
row is continued as if it were alone. The random numbers of a row depend on nothing but the key and
the number of its prompt.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from arch import Model, SequenceInfo
from arch.stack_state import StackState
from errors import ConfigError
from settings.types import Fraction, NonNegativeInt, Range, config
from training.distributed.multihost import to_host


@config
class Sampling:
    """The parameters of sampling; all filters apply together."""

    # Softmax temperature; 0 takes the most likely token.
    temperature: Annotated[float, Range(low=0, high=1000)] = 1.0
    top_k: NonNegativeInt = 0  # Number of most likely tokens to sample from; 0 allows all.
    # Samples from the most likely tokens that hold this probability mass (arXiv:1904.09751).
    top_p: Annotated[float, Range(low=0, high=1, open_low=True)] = 1.0
    # Least probability of a token relative to the most likely one (arXiv:2407.01082).
    min_p: Fraction = 0.0


GREEDY = Sampling(temperature=0.0)


class DecodingCarry(NamedTuple):
    """What a decoding step reads and writes."""

    hidden: Float[Array, "B 1 D"]  # Output of the last norm at the last token.
    position: Int[Array, " B"]  # Position of the next token.
    state: StackState | None  # Not None; the model returns none if it gets none.


def generate(
    model: Model,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    *,
    key: Array,
    prompt_numbers: Sequence[int] | None = None,
    stop_tokens: int | tuple[int, ...] = -1,
    sampling: Sampling = GREEDY,
    pad_to: int = 0,
) -> list[np.ndarray]:
    """Returns up to `max_new_tokens` new tokens for each prompt, which end before a stop token.

    Args:
        model: the model; it is causal and has no encoder.
        prompts: the token ids of each prompt.
        max_new_tokens: the number of tokens to decode.
        key: the key of the random numbers.
        prompt_numbers: the numbers of the prompts, from which with `key` their random numbers
            follow; by default their indices.
        stop_tokens: ids that end a continuation; it does not contain them.
        sampling: the parameters of sampling.
        pad_to: the least length of the padded prompts. Each new padded length compiles a program.

    Raises:
        ConfigError: if a prompt is empty, or if the model has too few positions.
    """
    if not prompts:
        return []
    check_positions(model, max(map(len, prompts)), max_new_tokens)
    tokens, is_real = _pad_left(prompts, pad_to)
    numbers = np.arange(len(prompts)) if prompt_numbers is None else np.asarray(prompt_numbers)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
    out = np.asarray(to_host(_generate(model, tokens, is_real, keys, max_new_tokens, sampling)))
    stops = np.atleast_1d(stop_tokens)
    return [_truncate_at_stop(row, stops) for row in out]


def stream(
    model: Model,
    prompt: np.ndarray,
    max_new_tokens: int,
    *,
    key: Array,
    prompt_number: int = 0,
    stop_tokens: int | tuple[int, ...] = -1,
    sampling: Sampling = GREEDY,
    pad_to: int = 0,
) -> Iterator[int]:
    """Yields each new token as it is decoded; they are those that `generate` returns.

    Raises:
        ConfigError: if the prompt is empty, or if the model has too few positions.
    """
    check_positions(model, len(prompt), max_new_tokens)
    tokens, is_real = _pad_left([prompt], pad_to)
    keys, stops = jax.random.fold_in(key, prompt_number)[None], np.atleast_1d(stop_tokens)
    carry = _prefill_program(model, tokens, is_real, max_new_tokens)
    for index in range(max_new_tokens):
        carry, token = step_program(model, carry, keys, jnp.int32(index), sampling)
        if (value := int(to_host(token)[0])) in stops:
            return
        yield value


def check_positions(model: Model, prompt_length: int, max_new_tokens: int) -> None:
    """Checks that a prompt can be continued.

    Raises:
        ConfigError: if the prompt is empty, or if the model has too few positions.
    """
    if not prompt_length:
        raise ConfigError("a prompt has no tokens; begin it with the token bos")
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}, must be >= 0")
    positions, length = model.config.positions, prompt_length + max_new_tokens
    if positions.learned and length > positions.max_length:
        room = positions.max_length - prompt_length
        way = f"largest max_new_tokens: {room}" if room > 0 else "shorten the prompt"
        raise ConfigError(
            f"a prompt of {prompt_length} tokens and {max_new_tokens} new ones need {length} "
            f"positions, the model has {positions.max_length} (model.positions.max_length); {way}"
        )


@functools.partial(jax.jit, static_argnames=("max_new_tokens", "sampling"))
def _generate(
    model: Model,
    tokens: Int[Array, "B T"],
    is_real: Bool[Array, "B T"],
    keys: Array,
    max_new_tokens: int,
    sampling: Sampling,
) -> Int[Array, "B N"]:
    def step(carry: DecodingCarry, index: Array) -> tuple[DecodingCarry, Array]:
        return _step(model, carry, keys, index, sampling)

    carry = _prefill(model, tokens, is_real, max_new_tokens)
    return jax.lax.scan(step, carry, jnp.arange(max_new_tokens))[1].T


def _prefill(
    model: Model, tokens: Int[Array, "B T"], is_real: Bool[Array, "B T"], max_new_tokens: int
) -> DecodingCarry:
    B, T = tokens.shape
    segment_ids = is_real.astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(segment_ids, axis=1) - 1, 0)
    empty = model.init_state(B, T + max_new_tokens)
    hidden, _, state = model(tokens, SequenceInfo(positions, segment_ids), state=empty)
    return DecodingCarry(hidden[:, -1:], positions[:, -1] + 1, state)


def _step(
    model: Model, carry: DecodingCarry, keys: Array, index: Array, sampling: Sampling
) -> tuple[DecodingCarry, Int[Array, " B"]]:
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    token = sample_token(model.logits(carry.hidden)[:, 0], step_keys, sampling)
    seq = SequenceInfo(carry.position[:, None], jnp.ones((len(token), 1), jnp.int32))
    hidden, _, state = model(token[:, None], seq, state=carry.state)
    return DecodingCarry(hidden, carry.position + 1, state), token


_prefill_program = jax.jit(_prefill, static_argnames="max_new_tokens")
step_program = jax.jit(_step, static_argnames="sampling", donate_argnames="carry")


def sample_token(logits: Float[Array, "B V"], key: Array, sampling: Sampling) -> Int[Array, " B"]:
    """Samples one token per row; `key` is one key for all rows, or has one key per row.

    Of equal logits, `top_k` and `top_p` allow those of the lowest ids first, as argmax takes them:
    in bfloat16 many logits are equal, and more tokens than were asked for would be allowed.
    """
    if not sampling.temperature:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    lowest = jnp.finfo(logits.dtype).min
    # Differences to the largest logit stay finite at every temperature.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = logits / max(sampling.temperature, float(jnp.finfo(logits.dtype).tiny))
    if sampling.top_k:
        best = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[1]
        logits = jnp.where(_mark(best, logits), logits, lowest)
    if sampling.top_p < 1:
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
        # The sum excludes the token itself, so the most likely token is always allowed.
        is_allowed = jnp.cumsum(probs, axis=-1) - probs < sampling.top_p
        logits = jnp.where(_mark(order, logits, is_allowed), logits, lowest)
    if sampling.min_p:
        threshold = jnp.log(sampling.min_p)  # The largest logit is 0.
        logits = jnp.where(logits < threshold, lowest, logits)
    if not key.ndim:
        return jax.random.categorical(key, logits).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(key, logits).astype(jnp.int32)


def _mark(
    tokens: Int[Array, "B N"], logits: Float[Array, "B V"], values: Bool[Array, "B N"] | bool = True
) -> Bool[Array, "B V"]:
    """Returns a mask with `values` at the ids `tokens` of each row, False elsewhere."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros(logits.shape, bool).at[rows, tokens].set(values)


def _pad_left(prompts: Sequence[np.ndarray], pad_to: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the prompts as [B T], padded on the left, and which tokens are no padding."""
    length = max(pad_to, *map(len, prompts))
    tokens = np.zeros((len(prompts), length), np.int32)
    is_real = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :], is_real[row, length - len(prompt) :] = prompt, True
    return tokens, is_real


def _truncate_at_stop(row: np.ndarray, stop_tokens: np.ndarray) -> np.ndarray:
    stops = np.flatnonzero(np.isin(row, stop_tokens))
    return row[: stops[0]] if len(stops) else row
