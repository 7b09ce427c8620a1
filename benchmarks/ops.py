"""Time and memory of each operation beside its reference, forward and with its backward pass.

    uv run benchmarks/ops.py [--only=attention] [--repeats=7] [--dtype=float32] [--growth]

Medians of interleaved calls, so that a busy machine slows all alike; MiB is what XLA allocates
beside arguments and results; the last column is the first implementation's time over a row's own,
with the backward pass. To add an operation, add its rows to ROWS.
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

from arch import routing
from arch.linear import linear
from ops.attention import Tokens, attention
from ops.causal_conv import causal_conv
from ops.cross_entropy import cross_entropy
from ops.experts import Weights, experts
from ops.gated_delta import gated_delta
from ops.selective_scan import selective_scan
from ops.ssd import ssd

Shapes = tuple[tuple[int, ...], ...]


class Row(NamedTuple):
    name: str
    call: Callable[..., jax.Array]  # of the arrays and an implementation
    shapes: Shapes  # of the arrays, which are all differentiated
    implementations: tuple[str, ...] = ("reference", "xla")
    beside: tuple["Row", ...] = ()  # rows timed in turn with it, to compare


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


def mix(B: int, T: int, D: int, F: int, E: int, K: int, capacity: float = 0.0) -> Row:
    """An MLP, beside it experts (the choice included) of as many active FLOPs."""
    slots = routing.slots(capacity, K, T, E, 0) if capacity else None

    def call(
        x: jax.Array, logits: jax.Array, w_in: jax.Array, w_out: jax.Array, implementation: str
    ) -> jax.Array:
        score = routing.scores(logits, "softmax")
        chosen = routing.chosen_by_token(score, K)
        routes = routing.by_token(score, chosen, jnp.ones((B, T), bool), normalize=True)
        routes = routing.within(routes, slots, E) if slots else routes
        w = Weights(w_in, None, w_out)
        return experts(x, routes, w, jax.nn.silu, slots=slots, implementation=implementation)

    def dense(x: jax.Array, w_in: jax.Array, w_out: jax.Array, implementation: str) -> jax.Array:
        return linear(jax.nn.silu(linear(x, w_in)), w_out)

    name = f"experts B={B} T={T} D={D} F={F} E={E} K={K} capacity={capacity}"
    own = ("gather",) if capacity else ("reference", "blocks", "ragged")
    routed = Row("", call, ((B, T, D), (B, T, E), (E, D, F), (E, F, D)), own)
    return Row(name, dense, ((B, T, D), (D, K * F), (K * F, D)), ("dense mlp",), (routed,))


def associative(u: jax.Array, dt: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """The rival of the scans: all states [B T C S] at once, by jax's own associative scan."""

    def join(first: tuple, second: tuple) -> tuple:
        return first[0] * second[0], second[0] * first[1] + second[1]

    decay, write = jnp.exp(dt[..., None] * a), (dt * u)[..., None] * b[:, :, None]
    _, h = jax.lax.associative_scan(join, (decay, write), axis=1)
    return jnp.einsum("btcs,bts->btc", h, c)


def scan(B: int, T: int, C: int = 512, S: int = 16) -> Row:
    def call(u, dt, a, b, c, implementation: str) -> jax.Array:
        dt, a = jax.nn.softplus(dt - 3), -jnp.exp(a)
        if implementation == "associative":
            return associative(u, dt, a, b, c)
        return selective_scan(u, dt, a, b, c, implementation=implementation)[0]

    shapes = ((B, T, C), (B, T, C), (C, S), (B, T, S), (B, T, S))
    return Row(f"selective_scan B={B} T={T} C={C} S={S}", call, shapes, ("associative", "xla"))


def dual(B: int, T: int, H: int = 8, W: int = 64, N: int = 16) -> Row:
    """The rival has as many channels and states, each with a decay of its own."""

    def call(x, dt, a, b, c, implementation: str) -> jax.Array:
        dt, a = jax.nn.softplus(dt - 3), -jnp.exp(a)
        if implementation == "associative":
            a = jnp.broadcast_to(jnp.repeat(a, W)[:, None], (H * W, N))
            x, dt = x.reshape(B, T, H * W), jnp.repeat(dt, W, axis=2)
            return associative(x, dt, a, b[:, :, 0], c[:, :, 0])
        return ssd(x, dt, a, b, c, implementation=implementation)[0].reshape(B, T, H * W)

    shapes = ((B, T, H, W), (B, T, H), (H,), (B, T, 1, N), (B, T, 1, N))
    return Row(f"ssd B={B} T={T} H={H} P={W} N={N}", call, shapes, ("associative", "xla"))


def delta(B: int, T: int, H: int = 8, K: int = 64, V: int = 64) -> Row:
    def call(q, k, v, g, beta, implementation: str) -> jax.Array:
        k, g = k / jnp.linalg.norm(k, axis=-1, keepdims=True), jax.nn.log_sigmoid(g + 3)
        return gated_delta(q, k, v, g, jax.nn.sigmoid(beta), implementation=implementation)[0]

    shapes = ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H), (B, T, H))
    return Row(f"gated_delta B={B} T={T} H={H} K={K} V={V}", call, shapes)


def filtered(B: int, T: int, C: int = 512, K: int = 4) -> Row:
    """The rival is XLA's depthwise convolution, which knows no documents."""
    reset = jnp.broadcast_to(jnp.arange(T) % (T // 3) == 0, (B, T))

    def call(x: jax.Array, w: jax.Array, implementation: str) -> jax.Array:
        if implementation == "lax.conv":
            return jax.lax.conv_general_dilated(
                *(x, w[:, None], (1,), [(K - 1, 0)]),
                dimension_numbers=("NTC", "TIO", "NTC"),
                feature_group_count=C,
            )
        return causal_conv(x, w, reset=reset, implementation=implementation)[0]

    name = f"causal_conv B={B} T={T} C={C} K={K}"
    return Row(name, call, ((B, T, C), (K, C)), ("lax.conv", "xla"))


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
    mix(8, 512, 512, 1024, 8, 2),
    mix(8, 512, 512, 1024, 8, 2, capacity=1.25),
    scan(4, 1024),
    scan(1, 4096),
    dual(4, 1024),
    dual(1, 4096),
    delta(4, 1024),
    delta(1, 4096),
    filtered(4, 1024),
    filtered(1, 4096),
]

# Four rows of 1,024 tokens and one of 4,096: their costs are linear in tokens.
LONG = [
    (scan(4, 1024), scan(1, 4096)),
    (dual(4, 1024), dual(1, 4096)),
    (delta(4, 1024), delta(1, 4096)),
    (attend(4, 1024, window=256), attend(1, 4096, window=256)),
]


class Timed(NamedTuple):
    program: jax.stages.Compiled
    arrays: tuple[jax.Array, ...]
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        temp = self.program.memory_analysis().temp_size_in_bytes / 2**20
        return f"{self.median * 1e3:9.1f} ms {temp:7.1f} MiB"


def compiled(row: Row, implementation: str, arrays: tuple[jax.Array, ...]) -> list[Timed]:
    """Forward, and forward + backward."""

    def forward(*arrays: jax.Array) -> jax.Array:
        return row.call(*arrays, implementation)

    def backward(grad: jax.Array, *arrays: jax.Array) -> Any:
        out, pull = jax.vjp(forward, *arrays)
        return out, pull(grad)

    out = jax.eval_shape(forward, *arrays)
    grad = jnp.sin(jnp.arange(out.size)).astype(out.dtype).reshape(out.shape)
    calls = ((forward, arrays), (backward, (grad, *arrays)))
    return [Timed(jax.jit(f).lower(*given).compile(), given, []) for f, given in calls]


def inputs(row: Row, dtype: str) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), len(row.shapes))
    return tuple(
        (jax.random.normal(k, s) * (0.05 if len(s) == 2 else 1)).astype(dtype)
        for k, s in zip(keys, row.shapes, strict=True)
    )


def run(programs: list[Timed], repeats: int) -> None:
    """In turn; the first call is not counted."""
    for repeat in range(repeats + 1):
        for timed in programs:
            began = time.perf_counter()
            jax.block_until_ready(timed.program(*timed.arrays))
            if repeat:
                timed.seconds.append(time.perf_counter() - began)


def grow(short: Row, long: Row, repeats: int, dtype: str) -> None:
    """The fast implementation's time for the same tokens in longer rows."""
    pair = [compiled(row, row.implementations[-1], inputs(row, dtype))[1] for row in (short, long)]
    run(pair, repeats)
    print(short.name, "->", long.name)
    print(f"  with backward {pair[0]} -> {pair[1]}   {pair[1].median / pair[0].median:.2f} of 1.10")


def measure(row: Row, repeats: int, dtype: str) -> None:
    programs = {}
    for one in (row, *row.beside):
        arrays = inputs(one, dtype)
        for name in one.implementations:
            programs[name] = compiled(one, name, arrays)
    run([timed for pair in programs.values() for timed in pair], repeats)
    print(row.name)
    first = programs[row.implementations[0]][1].median
    for name, (forward, backward) in programs.items():
        ratio = first / backward.median
        print(f"  {name:11} forward {forward}   with backward {backward} {ratio:6.1f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--growth", action="store_true", help="only longer rows beside short ones")
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {args.dtype}")
    for short, long in LONG if args.growth else ():
        if args.only in short.name:
            grow(short, long, args.repeats, args.dtype)
    for row in () if args.growth else ROWS:
        if args.only in row.name:
            measure(row, args.repeats, args.dtype)


if __name__ == "__main__":
    main()
