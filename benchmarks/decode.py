"""Measures the decoding of one token, beside an attention cache of the same size.

    uv run benchmarks/decode.py [--mixers=mamba2,gated_deltanet] [--batches=1,32] [--width=384]

Each mixer decodes with a state of a fixed size. Its rival is attention of the same width and depth,
whose cache has as many tokens as make the bytes of both states as equal as possible. Both decode in
turn, so that a busy machine slows both alike. The ratio is the median of neighboring steps; above 1
the mixer is faster. The last column is the bytes that a step must at least move, all parameters and
the state read once, per second: compare it with the memory bandwidth in the first line. A recurrent
step also writes its whole state, while a cache gets one token more.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))

from arch import MIXERS, Model, ModelConfig
from eval.generate import GREEDY, DecodingCarry, step_program
from settings.changes import with_changes
from training import mesh as meshes

DEPTH, VOCAB, HEAD_DIM = 6, 8192, 64
COPIED_BYTES = 1 << 28


class Decoder(NamedTuple):
    """A model with its decoding state, which each call of `step` advances by one token."""

    step: Callable[[], None]
    state_bytes: int
    param_bytes: int
    seconds: list[float]


def make_config(mixer: str, width: int) -> ModelConfig:
    """Returns a model of one mixer in all layers, and of MLPs."""
    changes = {
        "layers": (f"{mixer}+mlp",),
        "width": width,
        "depth": DEPTH,
        "vocab_size": VOCAB,
        "attention.heads": width // HEAD_DIM,
        "mamba2.state_size": HEAD_DIM,
    }
    return with_changes(ModelConfig(), changes, "model")


def make_decoder(cfg: ModelConfig, batch_size: int, context: int) -> Decoder:
    """Returns a decoder of rows that have `context` tokens at most."""
    model = Model(cfg, key=jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), batch_size)
    seconds: list[float] = []

    def begin() -> DecodingCarry:
        """Returns the carry after the first token, whose program is another one."""
        hidden = jnp.zeros((batch_size, 1, cfg.width), cfg.dtype)
        state = jax.tree.map(jnp.array, model.init_state(batch_size, context))  # one buffer each
        first = DecodingCarry(hidden, jnp.zeros((batch_size,), jnp.int32), state)
        carry, _ = step_program(model, first, keys, jnp.int32(0), GREEDY)
        return jax.block_until_ready(carry)  # type: ignore[no-any-return]

    carry = begin()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(carry.state))
    param_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(model))

    def step() -> None:
        nonlocal carry
        if len(seconds) % (context - 1) == 0:
            carry = begin()
        start = time.perf_counter()
        carry, token = step_program(model, carry, keys, jnp.int32(len(seconds)), GREEDY)
        token.block_until_ready()
        seconds.append(time.perf_counter() - start)

    return Decoder(step, state_bytes, param_bytes, seconds)


def equal_context(cfg: ModelConfig, state_bytes: int) -> int:
    """Returns the tokens of an attention cache with as many bytes as a state, at least 2."""
    model = jax.eval_shape(lambda: Model(cfg, key=jax.random.key(0)))
    shapes = [jax.eval_shape(lambda n=n: model.init_state(1, n)) for n in (1, 2)]
    one, two = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) for state in shapes)
    return max(round((state_bytes - one) / (two - one)) + 1, 2)


def measure_bandwidth() -> float:
    """Returns the bytes per second that a sum of a large array reads."""
    x = jnp.ones(COPIED_BYTES // 4, jnp.float32)
    total = jax.jit(jnp.sum).lower(x).compile()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        total(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return COPIED_BYTES / min(times)


def compare(mixer: str, batch_size: int, width: int, steps: int) -> None:
    """Prints one row: a mixer beside attention with a cache of the same size."""
    ours = make_decoder(make_config(mixer, width), batch_size, steps + 2)
    attention = make_config("attention", width)
    context = equal_context(attention, ours.state_bytes // batch_size)
    rival = make_decoder(attention, batch_size, context)
    for _ in range(steps + 2):
        ours.step()
        rival.step()
    times = [decoder.seconds[2:] for decoder in (ours, rival)]
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    a, b = map(statistics.median, times)
    speeds = [
        (decoder.param_bytes + decoder.state_bytes) / median / 1e9
        for decoder, median in ((ours, a), (rival, b))
    ]
    print(
        f"{mixer:16}{batch_size:6}{ours.state_bytes / 2**20:10.2f}{1e3 * a:10.2f}"
        f"{context:10}{rival.state_bytes / 2**20:10.2f}{1e3 * b:10.2f}{ratio:8.2f}"
        f"{speeds[0]:10.1f} / {speeds[1]:.1f}",
        flush=True,
    )


def main() -> None:
    """Runs the benchmark of decoding for the flags of the command line."""
    recurrent = [name for name in MIXERS if name != "attention"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixers", default="mamba1,mamba2,gated_deltanet,lstm")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    if unknown := {*args.mixers.split(",")} - {*recurrent}:
        parser.error(f"--mixers has {min(unknown)!r}; choose from {', '.join(recurrent)}")
    print(f"memory bandwidth {measure_bandwidth() / 1e9:.1f} GB/s")
    print(
        f"{'mixer':16}{'batch':>6}{'state MiB':>10}{'ms/token':>10}"
        f"{'context':>10}{'cache MiB':>10}{'ms/token':>10}{'ratio':>8}{'GB/s':>10}"
    )
    with jax.set_mesh(meshes.make_mesh(meshes.MeshConfig())):
        for mixer in args.mixers.split(","):
            for batch_size in map(int, args.batches.split(",")):
                compare(mixer, batch_size, args.width, args.steps)


if __name__ == "__main__":
    main()
