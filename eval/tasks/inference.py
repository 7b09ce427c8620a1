"""Measures the cost of inference: prefill tokens/s, decode ms/token and state bytes, by context.

Times are medians of five calls, after one call that compiles. The batch has one row, decoding is
greedy, and the devices are those of the mesh. State bytes are measured from the arrays and reported
beside the estimate of the cost model.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp

from arch import Model, SequenceInfo, compute_cost
from eval.task import EvalContext, Score

T = TypeVar("T")
CONTEXT_LENGTHS = (256, 1024, 4096, 16384)
DECODE_STEPS, TIMED_CALLS = 16, 5


class Inference:
    """Measures speed and state size at several context lengths.

    It stops at the first context that a learned position table does not cover.
    """

    version: ClassVar[int] = 1

    def __init__(
        self, splits: tuple[str, ...] = (), context_lengths: tuple[int, ...] = CONTEXT_LENGTHS
    ):
        self.context_lengths = context_lengths

    def __call__(self, ctx: EvalContext) -> Iterator[Score]:
        """Yields the scores of every context length."""
        model, positions = ctx.trainable.model, ctx.settings.model.positions
        with jax.set_mesh(ctx.mesh):
            for length in self.context_lengths:
                if positions.learned and length + DECODE_STEPS > positions.max_length:
                    return
                yield from measure_speed(model, length)


def measure_speed(model: Model, context_length: int) -> Iterator[Score]:
    """Yields the speed and the state size of a model for one row of `context_length` tokens."""
    tokens = jnp.ones((1, context_length), jnp.int32)
    capacity = context_length + DECODE_STEPS
    prefill = jax.jit(functools.partial(_prefill, capacity=capacity))
    seconds, (token, state) = median_seconds(lambda: prefill(model, tokens))
    yield Score(f"prefill_tokens_per_second@{context_length}", context_length / seconds)
    decode = jax.jit(_decode)
    position = jnp.int32(context_length)
    seconds, _ = median_seconds(lambda: decode(model, token, state, position))
    yield Score(f"decode_ms_per_token@{context_length}", 1e3 * seconds / DECODE_STEPS)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    yield Score(f"state_bytes@{context_length}", float(state_bytes))
    estimate = compute_cost(model.config, capacity).state_bytes
    yield Score(f"state_bytes_estimate@{context_length}", float(estimate))


def median_seconds(fn: Callable[[], T]) -> tuple[float, T]:
    """Returns the median time of TIMED_CALLS calls of `fn` and the result of the last call.

    A first call, which compiles, is not timed.
    """
    out = jax.block_until_ready(fn())
    seconds = []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        out = jax.block_until_ready(fn())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), out


def _prefill(model: Model, tokens: jax.Array, *, capacity: int) -> tuple[jax.Array, Any]:
    empty = model.init_state(1, capacity)
    hidden, _, state = model(tokens, SequenceInfo.unpacked(*tokens.shape), state=empty)
    return jnp.argmax(model.logits(hidden[:, -1:])[:, 0], axis=-1), state


def _decode(model: Model, token: jax.Array, state: Any, position: jax.Array) -> jax.Array:
    ones = jnp.ones((1, 1), jnp.int32)

    def step(carry: Any, unused: None) -> tuple[Any, jax.Array]:
        token, state, position = carry
        seq = SequenceInfo(position[None, None], ones)
        hidden, _, state = model(token[:, None], seq, state=state)
        token = jnp.argmax(model.logits(hidden)[:, 0], axis=-1)
        return (token, state, position + 1), token

    return jax.lax.scan(step, (token, state, position), None, length=DECODE_STEPS)[1]
