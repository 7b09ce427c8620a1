"""Time and memory of each operation beside its reference, forward and with its backward pass.

    uv run benchmarks/ops.py [--only=attention] [--repeats=7] [--dtype=float32]

Medians of interleaved calls, so that a busy machine slows all alike; `temp` is what XLA allocates
beside arguments and results. To add an operation, add its rows to ROWS.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))

from ops.attention import Tokens, attention
from ops.cross_entropy import cross_entropy

Shapes = tuple[tuple[int, ...], ...]


class Row(NamedTuple):
    name: str
    call: Callable[..., jax.Array]  # of the arrays and an implementation
    shapes: Shapes  # of the arrays, which are all differentiated
    implementations: tuple[str, ...] = ("reference", "xla")


def attend(B: int, T: int, S: int = 0, H: int = 8, G: int = 8, K: int = 64, window: int = 0) -> Row:
    """Causal attention of rows packed with three documents, or (S > 0) of T tokens to S cached."""
    segments = jnp.broadcast_to(1 + jnp.arange(S or T) * 3 // (S or T), (B, S or T))
    order = jnp.broadcast_to(jnp.arange(S or T), (B, S or T))
    keys = Tokens(order, jnp.ones_like(segments) if S else segments, order)
    queries = jax.tree.map(lambda x: x[:, -T:], keys)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str) -> jax.Array:
        return attention(
            *(q, k, v, queries, keys),
            causal=True,
            window=(window - 1, 0) if window else None,
            scale=K**-0.5,
            aligned=not S,
            implementation=implementation,
        )

    case = (
        f"B={B} T={T}" + f" S={S}" * bool(S) + f" W={window}" * bool(window) + f" H={H}/{G} K={K}"
    )
    return Row(f"attention {case}", call, ((B, T, H, K), (B, S or T, G, K), (B, S or T, G, K)))


def predict(B: int, T: int, D: int, V: int) -> Row:
    """Cross-entropy and z-loss of B x T tokens."""
    targets = jax.random.randint(jax.random.key(1), (B, T), 0, V)

    def call(hidden: jax.Array, table: jax.Array, implementation: str) -> jax.Array:
        out = cross_entropy(hidden, table, targets, vocab=V, implementation=implementation)
        return out.nats + 1e-4 * jnp.square(out.lse) + out.correct * 1e-9

    return Row(f"cross_entropy B={B} T={T} D={D} V={V}", call, ((B, T, D), (V, D)))


ROWS = [
    attend(32, 128),
    attend(16, 256),
    attend(8, 512),
    attend(4, 1024),
    attend(2, 2048),
    attend(4, 1024, G=2),
    attend(2, 2048, window=256),
    attend(8, 1, S=1024),
    predict(32, 256, 512, 384),
    predict(32, 256, 512, 8192),
    predict(32, 256, 512, 32000),
]


class Timed(NamedTuple):
    program: jax.stages.Compiled
    seconds: list[float]

    def __str__(self) -> str:
        temp = self.program.memory_analysis().temp_size_in_bytes / 2**20
        return f"{statistics.median(self.seconds) * 1e3:9.1f} ms {temp:7.1f} MiB"


def compiled(row: Row, implementation: str, arrays: tuple[jax.Array, ...]) -> list[Timed]:
    """Forward, and forward + backward."""

    def forward(*arrays: jax.Array) -> jax.Array:
        return row.call(*arrays, implementation)

    def backward(*arrays: jax.Array) -> Any:
        out, pull = jax.vjp(forward, *arrays)
        return out, pull(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    return [Timed(jax.jit(f).lower(*arrays).compile(), []) for f in (forward, backward)]


def measure(row: Row, repeats: int, dtype: str) -> None:
    keys = jax.random.split(jax.random.key(0), len(row.shapes))
    arrays = tuple(
        (jax.random.normal(k, s) * (0.05 if len(s) == 2 else 1)).astype(dtype)
        for k, s in zip(keys, row.shapes, strict=True)
    )
    programs = {name: compiled(row, name, arrays) for name in row.implementations}
    for repeat in range(repeats + 1):
        for timed in (t for pair in programs.values() for t in pair):
            began = time.perf_counter()
            jax.block_until_ready(timed.program(*arrays))
            if repeat:  # the first call is not counted
                timed.seconds.append(time.perf_counter() - began)
    print(row.name)
    for name, (forward, backward) in programs.items():
        print(f"  {name:10} forward {forward}   with backward {backward}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {args.dtype}")
    for row in ROWS:
        if args.only in row.name:
            measure(row, args.repeats, args.dtype)


if __name__ == "__main__":
    main()
