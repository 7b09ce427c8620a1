"""What using a model costs: prefill tokens/s, decode ms/token and state bytes, by context.

Medians of five calls after one that compiles. A batch of one row, greedy steps, on the devices of
the mesh. State bytes are counted in the arrays, and set beside what the ledger says.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from arch import Model, Sequence, cost
from eval.task import Score, Subject

CONTEXTS = (256, 1024, 4096, 16384)
STEPS, CALLS = 16, 5


class Inference:
    version: ClassVar[int] = 1
    objective: ClassVar[str] = "causal_lm"

    def __init__(self, splits: tuple[str, ...] = (), contexts: tuple[int, ...] = CONTEXTS):
        self.contexts = contexts

    def __call__(self, subject: Subject) -> Iterator[Score]:
        model, positions = subject.learner.model, subject.settings.model.positions
        with jax.set_mesh(subject.mesh):
            for context in self.contexts:
                if positions.learned and context + STEPS > positions.length:
                    return
                yield from measured(model, context)


def measured(model: Model, context: int) -> Iterator[Score]:
    """Of one row of `context` tokens."""
    tokens = jnp.ones((1, context), jnp.int32)
    capacity = context + STEPS
    prefill = jax.jit(functools.partial(_prefill, capacity=capacity))
    seconds, (token, state) = timed(lambda: prefill(model, tokens))
    yield Score(f"prefill_tokens_per_second@{context}", context / seconds)
    decode = jax.jit(_decode)
    start = jnp.int32(context)
    seconds, _ = timed(lambda: decode(model, token, state, start))
    yield Score(f"decode_ms_per_token@{context}", 1e3 * seconds / STEPS)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    yield Score(f"state_bytes@{context}", float(held))
    counted = cost(model.config, capacity).state_bytes
    yield Score(f"state_bytes_counted@{context}", float(counted))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The median of `CALLS` calls, and what the last one gave; the first, which compiles, apart."""
    out = jax.block_until_ready(call())
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        out = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), out


def _prefill(model: Model, tokens: jax.Array, *, capacity: int) -> tuple[jax.Array, Any]:
    empty = model.start(1, capacity)
    hidden, _, state = model(tokens, Sequence.plain(*tokens.shape), state=empty)
    return jnp.argmax(model.logits(hidden[:, -1:])[:, 0], axis=-1), state


def _decode(model: Model, token: jax.Array, state: Any, start: jax.Array) -> jax.Array:
    ones = jnp.ones((1, 1), jnp.int32)

    def step(carry: Any, nothing: None) -> tuple[Any, jax.Array]:
        token, state, place = carry
        seq = Sequence(place[None, None], ones)
        hidden, _, after = model(token[:, None], seq, state=state)
        token = jnp.argmax(model.logits(hidden)[:, 0], axis=-1)
        return (token, after, place + 1), token

    return jax.lax.scan(step, (token, state, start), None, length=STEPS)[1]
