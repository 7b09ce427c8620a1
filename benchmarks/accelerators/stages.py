"""The stages of benchmarks/accelerator.py, each of which is run as a process of its own."""

import argparse
import functools
import importlib.metadata
import inspect
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import benchmarks.ops as cases
from benchmarks.accelerator import read_record
from benchmarks.accelerators import rivals as rival_libraries
from benchmarks.accelerators.models import HYBRID, MODELS, fit_to_memory, model_settings
from objectives import DummyTokenizer
from settings.changes import with_changes
from training import accounting, hardware
from training import mesh as meshes
from training.loop import to_device
from training.preflight import memory_estimate
from training.program import TrainProgram, make_program
from training.settings import Settings

Case = tuple[str, Callable[[], dict[str, Any]]]  # a name, and what measures it

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "triton", "fla-core", "mamba-ssm")
ERROR_LIMITS = {"float32": 1e-4, "bfloat16": 3e-2}  # RMS of the difference / RMS of the reference
REPEATS = 5


class Sizes(NamedTuple):
    """The shapes of a run: those of an accelerator, or toy ones."""

    matrix: int  # width of the square matrices that measure the peak
    copy: int  # numbers that are copied to measure the bandwidth
    lengths: tuple[int, ...]  # of rows in `errors`
    row: int  # tokens of a row in `ops`
    rows: int
    heads: int
    train_row: int  # tokens of a row in `train`
    scale: int  # divides widths and depths of the models


FULL = Sizes(8192, 2**28, (512, 1000, 2048), 4096, 4, 16, 2048, 1)
TINY = Sizes(128, 2**16, (100,), 128, 1, 2, 64, 16)


def facts(sizes: Sizes) -> Iterator[Case]:
    """Yields the device, the peaks of products and the bandwidth of memory."""

    def device() -> dict[str, Any]:
        versions = {}
        for name in PACKAGES:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        first = jax.devices()[0]
        return {
            "kind": first.device_kind,
            "platform": first.platform,
            "memory_bytes": hardware.memory_bytes(first),
            "peak_flops": hardware.peak_flops(first),
            "driver": driver_version(),
            "versions": versions,
        }

    def peak(dtype: str) -> dict[str, Any]:
        size = sizes.matrix if dtype == "bfloat16" else sizes.matrix // 2
        x = jnp.ones((size, size), dtype)
        multiply = jax.jit(functools.partial(jnp.matmul, precision="highest"))
        seconds = time_best(lambda: multiply(x, x))
        return {"size": size, "flops": 2 * size**3 / seconds}

    def copy() -> dict[str, Any]:
        x = jnp.ones(sizes.copy, jnp.float32)
        seconds = time_best(lambda: add_one(x))
        return {"bytes_per_second": 2 * x.nbytes / seconds}

    add_one = jax.jit(lambda x: x + 1)
    yield "device", device
    yield "peak bfloat16", lambda: peak("bfloat16")
    yield "peak float32", lambda: peak("float32")
    yield "copy", copy


def driver_version() -> str:
    """Returns the version of NVIDIA's driver, "" where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def errors(sizes: Sizes) -> Iterator[Case]:
    """Yields the difference of each operation from its reference, outputs and gradients."""
    for length in sizes.lengths:
        for case in op_cases(2, length, 4, width=256 // max(sizes.scale // 4, 1)):
            for dtype in ERROR_LIMITS:
                yield f"{case.name} {dtype}", functools.partial(difference, case, dtype)


def op_cases(B: int, T: int, H: int, width: int = 512) -> list[cases.BenchmarkCase]:
    """Returns each operation on B rows of T tokens with H heads."""
    return [
        cases.attention_case(B, T, H=H, G=H, K=64),
        cases.attention_case(B, T, H=H, G=H // 2, K=128),
        cases.attention_case(B, T, H=H, G=H, K=64, window=T // 4),
        cases.cross_entropy_case(B, T, width, 8192),
        cases.experts_case(B, T, width, 2 * width, 8, 2)
        .rivals[0]
        ._replace(name=f"experts B={B} T={T} D={width}"),
        cases.selective_scan_case(B, T, C=width),
        cases.ssd_case(B, T, H=H, N=64),
        cases.delta_rule_case(B, T, 1, H=H),
        cases.delta_rule_case(B, T, 64, H=H),
        cases.gla_case(B, T, H=H),
        cases.causal_conv_case(B, T, C=width),
    ]


def difference(case: cases.BenchmarkCase, dtype: str) -> dict[str, Any]:
    """Returns how far the default implementation is from the reference in float32.

    Each difference is that of one output or gradient; the largest one counts.
    """
    arrays = cases.make_inputs(case, dtype)

    def outputs(implementation: str | None, arrays: tuple[jax.Array, ...]) -> list[np.ndarray]:
        def call(*arrays: jax.Array) -> jax.Array:
            return case.fn(*arrays, implementation)

        def with_gradients(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            out, pull = jax.vjp(call, *arrays)
            grad = jnp.sin(jnp.arange(out.size)).astype(out.dtype).reshape(out.shape)
            return out, *pull(grad)

        # Products of 16 bits are exact in float32, and Mosaic refuses to compute them as "highest".
        is_narrow = any(x.dtype == jnp.bfloat16 for x in arrays)
        with jax.default_matmul_precision("default" if is_narrow else "highest"):
            return [np.asarray(x, np.float64) for x in jax.jit(with_gradients)(*arrays)]

    exact = outputs("reference", tuple(x.astype(jnp.float32) for x in arrays))
    differences = [
        float(np.sqrt(np.mean((x - y) ** 2) / max(np.mean(y**2), 1e-24)))
        for x, y in zip(outputs(None, arrays), exact, strict=True)
    ]
    worst = max(differences)
    is_within = bool(np.isfinite(worst) and worst <= ERROR_LIMITS[dtype])
    return {"differences": differences, "worst": worst, "is_within": is_within}


def ops(sizes: Sizes) -> Iterator[Case]:
    """Yields the time of each operation, forward and with its backward pass, in bfloat16."""
    for case in op_cases(sizes.rows, sizes.row, sizes.heads, width=64 * sizes.heads):
        yield case.name, functools.partial(time_op, case)


def time_op(case: cases.BenchmarkCase) -> dict[str, Any]:
    """Returns the seconds of the default implementation."""
    arrays = cases.make_inputs(case, "bfloat16")
    forward, backward = cases.compile_case(case, None, arrays)
    cases.run_interleaved([forward, backward], REPEATS)
    return {"forward": forward.median, "backward": backward.median}


def train(sizes: Sizes) -> Iterator[Case]:
    """Yields training steps in bfloat16, with the largest batch that fits."""
    for name, (width, depth, layers, batch_size) in MODELS.items():
        settings = model_settings(width, depth, layers, sizes.train_row, sizes.scale)
        yield name, functools.partial(time_training, settings, max(batch_size // sizes.scale, 1))


def time_training(settings: Settings, batch_size: int) -> dict[str, Any]:
    """Returns the figures of a step with `batch_size` rows, or half as many until they fit.

    Remat and the optimizer are those with which the step fits by the memory estimate.

    Raises:
        JaxRuntimeError: if one row does not fit, or the step fails for another reason.
    """
    device = jax.devices()[0]
    program = make_program(
        with_changes(settings, {"train.batch_size": batch_size}),
        meshes.make_mesh(settings.mesh, [device]),
    )
    program = fit_to_memory(program, hardware.memory_bytes(device))
    while True:
        try:
            return time_step(program)
        except jax.errors.JaxRuntimeError as error:
            batch_size = program.settings.train.batch_size
            if not hardware.is_out_of_memory(error) or batch_size == 1:
                raise
            print(f"  {batch_size} rows do not fit", flush=True)
            smaller = {"train.batch_size": batch_size // 2}
            program = make_program(with_changes(program.settings, smaller), program.mesh)


def make_batch(program: TrainProgram) -> dict[str, np.ndarray]:
    """Returns a batch of random tokens."""
    train, vocab = program.settings.train, program.settings.model.vocab_size
    rng, T = np.random.default_rng(0), train.seq_len
    make_row = program.objective.make_row_fn(program.settings.model, T, DummyTokenizer())
    texts = rng.integers(0, vocab, (train.batch_size, T + 1)).astype(np.int32)
    rows = [make_row([text], T, rng) for text in texts]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def time_step(program: TrainProgram) -> dict[str, Any]:
    """Returns tokens/s, utilization, compile time and memory of a step."""
    settings, device = program.settings, jax.devices()[0]
    start = time.perf_counter()
    step = program.compile_train_step()
    compile_seconds = time.perf_counter() - start
    with jax.set_mesh(program.mesh):
        state, batch = program.init(), to_device(program, 0, make_batch(program))
        times = []
        for _ in range(REPEATS + 2):
            start = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - start)
    seconds = statistics.median(times[2:])
    cost, tokens = (
        accounting.model_cost(settings),
        settings.train.batch_size * settings.train.seq_len,
    )
    flops = 3 * cost.model_flops * tokens / seconds
    peak = hardware.peak_flops(device)
    return {
        "params": cost.params,
        "batch_size": settings.train.batch_size,
        "seq_len": settings.train.seq_len,
        "remat": settings.model.remat,
        "optimizer": settings.optimizer.name,
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "flops": flops,
        "mfu": flops / peak if peak else None,
        "compile_seconds": compile_seconds,
        "peak_bytes": hardware.peak_memory_bytes(device),
        "estimated_bytes": sum(memory_estimate.estimate(program).values()),
    }


def lanes(sizes: Sizes) -> Iterator[Case]:
    """Yields the tokens/s of a 17M model that is trained with several seeds at once."""
    settings = model_settings(
        384, 8, ("attention+mlp",), sizes.train_row // 4, sizes.scale, vocab=8192
    )
    settings = with_changes(settings, {"train.batch_size": max(16 // sizes.scale, 1)})
    for num_seeds in (1, 4, 16):
        yield f"{num_seeds} seeds", functools.partial(time_lanes, settings, num_seeds)


def time_lanes(settings: Settings, num_seeds: int) -> dict[str, Any]:
    """Returns the tokens/s of all seeds together."""
    program = make_program(settings, meshes.make_mesh(settings.mesh, jax.devices()[:1]))
    step = jax.jit(
        jax.vmap(inspect.unwrap(program.functions.step), in_axes=(0, None, None)), donate_argnums=0
    )
    init = jax.jit(jax.vmap(inspect.unwrap(program.functions.init)))
    with jax.set_mesh(program.mesh):
        state = init(jnp.arange(num_seeds, dtype=jnp.uint32))
        batch = to_device(program, 0, make_batch(program))
        times = []
        for _ in range(REPEATS + 2):
            start = time.perf_counter()
            state, metrics = step(state, batch, program.hyperparameters)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - start)
    tokens = num_seeds * settings.train.batch_size * settings.train.seq_len
    return {"tokens_per_second": tokens / statistics.median(times[2:])}


def crossover(sizes: Sizes) -> Iterator[Case]:
    """Yields the step times of a hybrid and of attention at growing lengths."""
    for length in (8192, 16384, 32768):
        for name, layers in (("attention", ("attention+mlp",)), ("hybrid", HYBRID)):
            settings = model_settings(
                384, 8, layers, length // sizes.scale**2, sizes.scale, vocab=8192
            )
            yield (
                f"{name} T={length // sizes.scale**2}",
                functools.partial(time_training, settings, max(65536 // length // sizes.scale, 1)),
            )


def time_best(call: Callable[[], Any]) -> float:
    """Returns the shortest seconds of several calls."""
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def rivals(sizes: Sizes) -> Iterator[Case]:
    """Yields the times of torch's attention and of flash-linear-attention's recurrences."""
    yield from rival_libraries.rival_cases(sizes.rows, sizes.row, sizes.heads)


STAGES = (facts, errors, ops, rivals, train, lanes, crossover)


def main() -> None:
    """Runs the cases of one stage that have no record yet, and writes the record after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    stages = {stage.__name__: stage for stage in STAGES}
    parser.add_argument("stage", choices=list(stages))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    sizes = TINY if args.tiny else FULL
    if jax.devices()[0].platform == "cpu" and not args.tiny and args.stage != "rivals":
        sys.exit("no accelerator is attached; add --tiny to try the script on the CPU")
    record, deadline = read_record(args.out), time.monotonic() + args.seconds
    for name, measure in stages[args.stage](sizes):
        if name in record and "error" not in record[name]:
            continue
        if time.monotonic() > deadline:
            sys.exit(f"  out of time before {name}")
        try:
            record[name] = measure()
        except Exception as error:  # a rival that is absent, a kernel that fails: recorded
            text = " ".join(str(error).split())[:200]
            record[name] = {"error": f"{type(error).__name__}: {text}"}
        print(f"  {name}: {json.dumps(record[name])[:160]}", flush=True)
        args.out.write_text(json.dumps(record, indent=1), "utf-8")


if __name__ == "__main__":
    main()
