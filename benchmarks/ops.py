"""Compares time and memory of each operation with its reference, forward and with backward.

    uv run benchmarks/ops.py [--only=attention] [--repeats=7] [--dtype=float32] [--growth]

Times are medians of interleaved calls, so that a busy machine slows all implementations equally.
MiB is the memory that XLA allocates in addition to arguments and results. The last column is the
speedup over the first implementation, with the backward pass. To add an operation, add its cases to
CASES.
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

from arch.channels import routing
from arch.layers.activations import Hidden
from arch.layers.linear import linear
from ops.attention.attention import TokenIndex, attention
from ops.cross_entropy import cross_entropy
from ops.experts.experts import ExpertWeights, experts
from ops.recurrent.causal_conv import causal_conv
from ops.recurrent.delta_rule import delta_rule
from ops.recurrent.gla import gla
from ops.recurrent.selective_scan import selective_scan
from ops.recurrent.ssd import ssd

Shapes = tuple[tuple[int, ...], ...]


class BenchmarkCase(NamedTuple):
    """An operation at one size, with the implementations to compare."""

    name: str
    fn: Callable[..., jax.Array]  # takes the arrays and the name of an implementation
    shapes: Shapes  # shapes of the arrays, which are all differentiated
    implementations: tuple[str, ...] = ("reference", "xla")
    rivals: tuple["BenchmarkCase", ...] = ()  # cases that are timed in turn with this one


def attention_case(
    B: int, T: int, S: int = 0, H: int = 8, G: int = 8, K: int = 64, window: int = 0
) -> BenchmarkCase:
    """Returns causal attention of rows with three documents, or (S > 0) of T tokens to S cached."""
    segment_ids = jnp.broadcast_to(1 + jnp.arange(S or T) * 3 // (S or T), (B, S or T))
    order = jnp.broadcast_to(jnp.arange(S or T), (B, S or T))
    keys = TokenIndex(order, jnp.ones_like(segment_ids) if S else segment_ids, order)
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
    return BenchmarkCase(
        f"attention {case}", call, ((B, T, H, K), (B, S or T, G, K), (B, S or T, G, K))
    )


def cross_entropy_case(B: int, T: int, D: int, V: int) -> BenchmarkCase:
    """Returns cross-entropy and z-loss of B x T tokens."""
    targets = jax.random.randint(jax.random.key(1), (B, T), 0, V)

    def call(hidden: jax.Array, table: jax.Array, implementation: str) -> jax.Array:
        out = cross_entropy(hidden, table, targets, vocab_size=V, implementation=implementation)
        return out.loss + 1e-4 * jnp.square(out.logsumexp) + out.correct * 1e-9

    return BenchmarkCase(f"cross_entropy B={B} T={T} D={D} V={V}", call, ((B, T, D), (V, D)))


def experts_case(
    B: int, T: int, D: int, F: int, E: int, K: int, capacity: float = 0.0
) -> BenchmarkCase:
    """Returns an MLP, and as its rival experts (with their routing) of as many active FLOPs."""
    n_slots = routing.expert_capacity(capacity, K, T, E, 0) if capacity else None

    def call(
        x: jax.Array, logits: jax.Array, w_in: jax.Array, w_out: jax.Array, implementation: str
    ) -> jax.Array:
        scores = routing.router_scores(logits, "softmax")
        chosen = routing.top_k_experts(scores, K)
        routes = routing.token_choice(scores, chosen, jnp.ones((B, T), bool), normalize=True)
        routes = routing.drop_over_capacity(routes, n_slots, E) if n_slots else routes
        w = ExpertWeights(w_in, None, w_out)
        return experts(
            x, routes, w, Hidden("silu"), capacity=n_slots, implementation=implementation
        )

    def dense(x: jax.Array, w_in: jax.Array, w_out: jax.Array, implementation: str) -> jax.Array:
        return linear(jax.nn.silu(linear(x, w_in)), w_out)

    name = f"experts B={B} T={T} D={D} F={F} E={E} K={K} capacity={capacity}"
    implementations = ("gather",) if capacity else ("reference", "blocks", "grouped", "ragged")
    routed = BenchmarkCase("", call, ((B, T, D), (B, T, E), (E, D, F), (E, F, D)), implementations)
    return BenchmarkCase(
        name, dense, ((B, T, D), (D, K * F), (K * F, D)), ("dense mlp",), (routed,)
    )


def associative_scan(
    u: jax.Array, dt: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array
) -> jax.Array:
    """Computes all states [B T C S] at once with jax.lax.associative_scan, as a rival of scans."""

    def join(first: tuple, second: tuple) -> tuple:
        return first[0] * second[0], second[0] * first[1] + second[1]

    decay, write = jnp.exp(dt[..., None] * a), (dt * u)[..., None] * b[:, :, None]
    _, h = jax.lax.associative_scan(join, (decay, write), axis=1)
    return jnp.einsum("btcs,bts->btc", h, c)


def selective_scan_case(B: int, T: int, C: int = 512, S: int = 16) -> BenchmarkCase:
    """Returns the scan of Mamba-1 with the associative scan as its rival."""

    def call(u, dt, a, b, c, implementation: str) -> jax.Array:
        dt, a = jax.nn.softplus(dt - 3), -jnp.exp(a)
        if implementation == "associative":
            return associative_scan(u, dt, a, b, c)
        return selective_scan(u, dt, a, b, c, implementation=implementation)[0]

    shapes = ((B, T, C), (B, T, C), (C, S), (B, T, S), (B, T, S))
    return BenchmarkCase(
        f"selective_scan B={B} T={T} C={C} S={S}", call, shapes, ("associative", "xla")
    )


def ssd_case(B: int, T: int, H: int = 8, W: int = 64, N: int = 16) -> BenchmarkCase:
    """Returns the scan of Mamba-2; its rival has as many states, with separate decays."""

    def call(x, dt, a, b, c, implementation: str) -> jax.Array:
        dt, a = jax.nn.softplus(dt - 3), -jnp.exp(a)
        if implementation == "associative":
            a = jnp.broadcast_to(jnp.repeat(a, W)[:, None], (H * W, N))
            x, dt = x.reshape(B, T, H * W), jnp.repeat(dt, W, axis=2)
            return associative_scan(x, dt, a, b[:, :, 0], c[:, :, 0])
        return ssd(x, dt, a, b, c, implementation=implementation)[0].reshape(B, T, H * W)

    shapes = ((B, T, H, W), (B, T, H), (H,), (B, T, 1, N), (B, T, 1, N))
    return BenchmarkCase(f"ssd B={B} T={T} H={H} P={W} N={N}", call, shapes, ("associative", "xla"))


def delta_rule_case(B: int, T: int, C: int, H: int = 8, K: int = 64, V: int = 64) -> BenchmarkCase:
    """Returns the delta rule with a decay for each head (C = 1) or for each channel (C = K)."""

    def call(q, k, v, g, beta, implementation: str) -> jax.Array:
        k, g = k / jnp.linalg.norm(k, axis=-1, keepdims=True), jax.nn.log_sigmoid(g + 3)
        beta = jax.nn.sigmoid(beta)
        return delta_rule(q, k, v, g, beta, beta, implementation=implementation)[0]

    shapes = ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H, C), (B, T, H, 1))
    return BenchmarkCase(f"delta_rule B={B} T={T} H={H} K={K} V={V} decays={C}", call, shapes)


def gla_case(B: int, T: int, H: int = 8, K: int = 64, V: int = 64) -> BenchmarkCase:
    """Returns gated linear attention with a decay for each channel."""

    def call(q, k, v, g, implementation: str) -> jax.Array:
        return gla(q, k, v, jax.nn.log_sigmoid(g + 3), implementation=implementation)[0]

    shapes = ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H, K))
    return BenchmarkCase(f"gla B={B} T={T} H={H} K={K} V={V}", call, shapes)


def causal_conv_case(B: int, T: int, C: int = 512, K: int = 4) -> BenchmarkCase:
    """Returns the short convolution; its rival is the depthwise one of XLA without documents."""
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
    return BenchmarkCase(name, call, ((B, T, C), (K, C)), ("lax.conv", "xla"))


CASES = [
    attention_case(32, 128),
    attention_case(16, 256),
    attention_case(8, 512),
    attention_case(4, 1024),
    attention_case(2, 2048),
    attention_case(4, 1024, G=2),
    attention_case(2, 2048, window=256),
    attention_case(8, 1, S=1024),
    cross_entropy_case(32, 256, 512, 384),
    cross_entropy_case(32, 256, 512, 8192),
    cross_entropy_case(32, 256, 512, 32000),
    experts_case(8, 512, 512, 1024, 8, 2),
    experts_case(8, 512, 512, 1024, 8, 2, capacity=1.25),
    selective_scan_case(4, 1024),
    selective_scan_case(1, 4096),
    ssd_case(4, 1024),
    ssd_case(1, 4096),
    *(delta_rule_case(B, T, C) for C in (1, 64) for B, T in ((4, 1024), (1, 4096))),
    gla_case(4, 1024),
    gla_case(1, 4096),
    causal_conv_case(4, 1024),
    causal_conv_case(1, 4096),
]

# Four rows of 1,024 tokens and one of 4,096 have equal costs, because these are linear in tokens.
GROWTH_CASES = [
    (selective_scan_case(4, 1024), selective_scan_case(1, 4096)),
    (ssd_case(4, 1024), ssd_case(1, 4096)),
    *((delta_rule_case(4, 1024, C), delta_rule_case(1, 4096, C)) for C in (1, 64)),
    (gla_case(4, 1024), gla_case(1, 4096)),
    (attention_case(4, 1024, window=256), attention_case(1, 4096, window=256)),
]


class TimedProgram(NamedTuple):
    """A compiled case, its inputs, and the times of its calls."""

    program: jax.stages.Compiled
    arrays: tuple[jax.Array, ...]
    seconds: list[float]

    @property
    def median(self) -> float:
        """The median of the times in seconds; there must be a call."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        temp = self.program.memory_analysis().temp_size_in_bytes / 2**20
        return f"{self.median * 1e3:9.1f} ms {temp:7.1f} MiB"


def compile_case(
    case: BenchmarkCase, implementation: str, arrays: tuple[jax.Array, ...]
) -> list[TimedProgram]:
    """Compiles an implementation forward, and forward with backward."""

    def forward(*arrays: jax.Array) -> jax.Array:
        return case.fn(*arrays, implementation)

    def backward(grad: jax.Array, *arrays: jax.Array) -> Any:
        out, pull = jax.vjp(forward, *arrays)
        return out, pull(grad)

    out = jax.eval_shape(forward, *arrays)
    grad = jnp.sin(jnp.arange(out.size)).astype(out.dtype).reshape(out.shape)
    calls = ((forward, arrays), (backward, (grad, *arrays)))
    return [TimedProgram(jax.jit(f).lower(*args).compile(), args, []) for f, args in calls]


def make_inputs(case: BenchmarkCase, dtype: str) -> tuple[jax.Array, ...]:
    """Returns random arrays for a case."""
    keys = jax.random.split(jax.random.key(0), len(case.shapes))
    return tuple(
        (jax.random.normal(k, s) * (0.05 if len(s) == 2 else 1)).astype(dtype)
        for k, s in zip(keys, case.shapes, strict=True)
    )


def run_interleaved(programs: list[TimedProgram], repeats: int) -> None:
    """Times the programs in turn; the first call of each is not counted."""
    for repeat in range(repeats + 1):
        for timed in programs:
            start = time.perf_counter()
            jax.block_until_ready(timed.program(*timed.arrays))
            if repeat:
                timed.seconds.append(time.perf_counter() - start)


def measure_growth(short: BenchmarkCase, long: BenchmarkCase, repeats: int, dtype: str) -> None:
    """Prints the time of the last implementation for the same tokens in short and long rows."""
    pair = [
        compile_case(case, case.implementations[-1], make_inputs(case, dtype))[1]
        for case in (short, long)
    ]
    run_interleaved(pair, repeats)
    print(short.name, "->", long.name)
    print(f"  with backward {pair[0]} -> {pair[1]}   {pair[1].median / pair[0].median:.2f} of 1.10")


def measure_case(case: BenchmarkCase, repeats: int, dtype: str) -> None:
    """Prints time and memory of all implementations of a case."""
    programs = {}
    for rival in (case, *case.rivals):
        arrays = make_inputs(rival, dtype)
        for name in rival.implementations:
            programs[name] = compile_case(rival, name, arrays)
    run_interleaved([timed for pair in programs.values() for timed in pair], repeats)
    print(case.name)
    first = programs[case.implementations[0]][1].median
    for name, (forward, backward) in programs.items():
        ratio = first / backward.median
        print(f"  {name:11} forward {forward}   with backward {backward} {ratio:6.1f}x", flush=True)


def main() -> None:
    """Runs the benchmark of operations for the flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run only cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--growth", action="store_true", help="compare only long rows with short ones"
    )
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {args.dtype}")
    for short, long in GROWTH_CASES if args.growth else ():
        if args.only in short.name:
            measure_growth(short, long, args.repeats, args.dtype)
    for case in () if args.growth else CASES:
        if args.only in case.name:
            measure_case(case, args.repeats, args.dtype)


if __name__ == "__main__":
    main()
