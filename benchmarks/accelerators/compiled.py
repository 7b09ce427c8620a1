"""Compiles the models of benchmarks/accelerator.py for chips that are absent: memory and time.

    uv run --group compilers benchmarks/accelerators/compiled.py    compiles what is missing
    uv run benchmarks/accelerators/compiled.py --table              writes docs/performance.md

Each training step is compiled in a process of its own for one H100 and one v5e, with the batch, the
remat policy and the optimizer that fit by preflight's estimate of memory; where the compiler
refuses the step nevertheless, half as many rows are tried. results/accelerator/
compiled.json records after each case whether the step fits, the compiler's figure of its memory
beside the estimate, and the time and memory that the compilation took; the next call goes on with
what is missing. MAX_SECONDS, MAX_PROCESS_BYTES and MAX_ERROR are the limits that the project sets.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.accelerator import RESULTS, read_record, replace_table

TOPOLOGIES = ("h100:1", "v5e:1")
TRAIN_ROW = 2048  # tokens of a row, as in benchmarks/accelerator.py
MAX_SECONDS = 120  # of all cores together, so that other load does not count, to compile one step
MAX_PROCESS_BYTES = 6 * 2**30  # memory of the process that compiles it
MAX_ERROR = 0.2  # of the estimate of the step's memory
TIMEOUT = 540  # seconds for the process of one case
TABLE_BEGIN = "<!-- table: benchmarks/accelerators/compiled.py -->\n"
TABLE_END = "<!-- end of the table of compiled steps -->\n"


def compile_case(model: str, topology: str) -> dict[str, Any]:
    """Returns the figures of one model, compiled in this process for one device.

    Raises:
        ConfigError: if the compiler of the chip is not installed.
    """
    import jax

    from benchmarks.accelerators.models import MODELS, fit_to_memory, model_settings
    from settings.changes import with_changes
    from training import accounting
    from training import mesh as meshes
    from training.preflight import check, memory_estimate, roofline
    from training.preflight.topology import parse_topology
    from training.program import make_program

    target = parse_topology(topology)
    width, depth, layers, rows = MODELS[model]
    settings = model_settings(width, depth, layers, TRAIN_ROW)
    settings = with_changes(settings, {"train.batch_size": rows})
    program = make_program(settings, meshes.make_mesh(settings.mesh, target.devices[:1]))
    program = fit_to_memory(program, target.chip.memory_bytes)
    while True:
        start = time.process_time()
        result, settings = check.try_compile(program, target.chip), program.settings
        cpu_seconds = time.process_time() - start
        rows = settings.train.batch_size
        if result.fits or rows == 1:
            break
        smaller = with_changes(settings, {"train.batch_size": rows // 2})
        program = make_program(smaller, program.mesh)
    step = roofline.estimate_step(program, roofline.CHIP_SPEEDS[topology.partition(":")[0]])
    return {
        "jax": jax.__version__,
        "params": accounting.model_cost(settings).params,
        "batch_size": settings.train.batch_size,
        "seq_len": settings.train.seq_len,
        "remat": settings.model.remat,
        "optimizer": settings.optimizer.name,
        "fits": result.fits,
        "compiled_bytes": result.total_bytes,
        "compiled": result.memory,
        "estimated": memory_estimate.estimate(program),
        "memory_bytes": target.chip.memory_bytes,
        "compile_seconds": round(result.seconds, 1),
        "compile_cpu_seconds": round(cpu_seconds, 1),
        "process_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "roofline_tokens_per_second": settings.train.batch_size * TRAIN_ROW / step.seconds,
        "roofline_mfu": step.mfu,
    }


def run_case(name: str) -> dict[str, Any]:
    """Returns the figures of one case from a process of its own, or its error."""
    # These variables must be set before JAX is imported; libtpu would query the cloud's metadata.
    command = ["env", "JAX_PLATFORMS=cpu", "TPU_SKIP_MDS_QUERY=1", sys.executable, "-P", __file__]
    try:
        done = subprocess.run(
            [*command, "--case", name], capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not compiled within {TIMEOUT} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    case: dict[str, Any] = json.loads(lines[-1])
    return case


def format_table(record: dict[str, Any]) -> str:
    """Returns the table of docs/performance.md from the record of the cases."""
    if not record:
        return "\nNot compiled yet.\n\n"
    lines = [
        "",
        "| training step | for | rows | remat, optimizer | memory: compiler, estimate | fits | "
        "CPU seconds, memory to compile | roofline |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in record.items():
        model, _, topology = name.rpartition(", ")
        if "error" in case:
            lines.append(f"| {model} | {topology} | | | {case['error']} | | | |")
            continue
        estimate = sum(case["estimated"].values())
        lines.append(
            f"| {model}, {case['params'] / 1e9:.2f} B | {topology} | "
            f"{case['batch_size']} x {case['seq_len']} | {case['remat']}, {case['optimizer']} | "
            f"{_gib(case['compiled_bytes'])}, {_gib(estimate)} GiB "
            f"({estimate / max(case['compiled_bytes'], 1) - 1:+.0%}) | "
            f"{'yes' if case['fits'] else '**no**'}, {_gib(case['memory_bytes'])} GiB | "
            f"{case['compile_cpu_seconds']:.0f} s, {_gib(case['process_bytes'])} GiB | "
            f"{case['roofline_tokens_per_second']:,.0f} tokens/s, {case['roofline_mfu']:.0%} |"
        )
    return "\n".join(lines) + "\n\n"


def missed_limits(record: dict[str, Any]) -> list[str]:
    """Returns a sentence for each limit that a case does not keep."""
    missed = []
    for name, case in record.items():
        if "error" in case:
            missed.append(f"{name}: {case['error']}")
            continue
        error = sum(case["estimated"].values()) / max(case["compiled_bytes"], 1) - 1
        limits = {
            "it does not fit": not case["fits"],
            f"it compiled in {case['compile_cpu_seconds']} s": case["compile_cpu_seconds"]
            > MAX_SECONDS,
            f"its compilation took {_gib(case['process_bytes'])} GiB": case["process_bytes"]
            > MAX_PROCESS_BYTES,
            f"the estimate differs by {error:+.0%}": abs(error) > MAX_ERROR,
        }
        missed += [f"{name}: {sentence}" for sentence, holds in limits.items() if holds]
    return missed


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"


def case_names() -> list[str]:
    """Returns the names of all cases."""
    from benchmarks.accelerators.models import MODELS

    return [f"{model}, {topology}" for topology in TOPOLOGIES for model in MODELS]


def main() -> int:
    """Compiles the cases that have no record yet, and returns 1 if one misses a limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "compiled.json", help="record")
    parser.add_argument("--only", default="", help="compile cases whose names contain this text")
    parser.add_argument("--again", action="store_true", help="compile recorded cases again")
    parser.add_argument("--table", action="store_true", help="write docs/performance.md and end")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(compile_case(*args.case.rsplit(", ", 1))))
        return 0
    record = read_record(args.out)
    if args.table:
        replace_table(TABLE_BEGIN, TABLE_END, format_table(record))
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in case_names() if args.only in name]
    for name in names:
        if name in record and "error" not in record[name] and not args.again:
            continue
        record[name] = run_case(name)
        print(f"{name}: {json.dumps(record[name])}", flush=True)
        ordered = {name: record[name] for name in case_names() if name in record}
        args.out.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")
    missed = missed_limits({name: record[name] for name in names})
    print("\n".join(missed) or "All cases keep their limits.")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
