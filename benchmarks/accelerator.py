"""Measures one accelerator in ten minutes: `python benchmarks/accelerator.py --minutes=9`.

The stages run one after the other, each in a process of its own with a time limit, and write what
they measured after each case to OUT/STAGE.json. What was reached stays when time runs out, and the
next call goes on with what is missing. On a CPU use --tiny, which runs all stages at toy size.

    facts      the device, versions, the peak of products, the bandwidth of memory
    errors     each operation beside its reference, outputs and gradients
    ops        the time of each operation
    rivals     the same operations by torch and flash-linear-attention, if they are installed
    train      training steps: tokens/s, utilization, memory beside its estimate
    lanes      one model with several seeds at once
    crossover  a hybrid and attention at growing lengths

`--table` writes the table of docs/performance.md from results/accelerator.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STAGES = {  # seconds that a stage may take
    "facts": 60,
    "errors": 150,
    "ops": 90,
    "rivals": 60,
    "train": 240,
    "lanes": 60,
    "crossover": 90,
}
RESULTS, PAGE = ROOT / "results" / "accelerator", ROOT / "docs" / "performance.md"
TABLE_BEGIN = "<!-- table: benchmarks/accelerator.py -->\n"
TABLE_END = "<!-- end of the accelerator's table -->\n"
NOT_RUN = "\nNot run on an accelerator yet.\n\n"


def read_record(path: Path) -> dict[str, Any]:
    """Returns the cases of a stage by name, {} if it has not begun or its file is damaged."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def run_stage(name: str, args: argparse.Namespace, seconds: float) -> str:
    """Runs one stage in a process of its own, and returns how it ended."""
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / "accelerators" / "stages.py"), name]
    command += [f"--out={args.out / name}.json"] + ["--tiny"] * args.tiny
    command += [f"--seconds={seconds:.0f}"]
    if name == "rivals":
        command = ["env", "JAX_PLATFORMS=cpu", *command]  # torch gets the memory of the device
    start = time.monotonic()
    try:
        code = subprocess.run(command, timeout=seconds + 15).returncode
        status = "complete" if code == 0 else f"ended with code {code}"
    except subprocess.TimeoutExpired:
        status = "ran out of time"
    cases = read_record(args.out / f"{name}.json")
    elapsed = time.monotonic() - start
    print(f"{name}: {status}, {len(cases)} cases, {elapsed:.0f} s", flush=True)
    return status


def format_table(folder: Path) -> str:
    """Returns the tables of docs/performance.md from the records of a folder."""
    facts = read_record(folder / "facts.json")
    if "device" not in facts or facts["device"]["platform"] == "cpu":
        return NOT_RUN
    device, peak = facts["device"], facts["peak bfloat16"]
    names = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
    lines = [
        "",
        f"Measured on {device['kind']} with {names}: products of large square matrices in bfloat16 "
        f"reach {peak['flops'] / 1e12:.0f} TFLOP/s, copies "
        f"{facts['copy']['bytes_per_second'] / 1e12:.2f} TB/s.",
        "",
        "| training step | parameters | batch | tokens/s | utilization | of the products | memory, "
        "estimate |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in read_record(folder / "train.json").items():
        if "error" in case:
            lines.append(f"| {name} | | | {case['error']} | | | |")
            continue
        lines.append(
            f"| {name} | {case['params'] / 1e9:.2f} B | {case['batch_size']} x {case['seq_len']} | "
            f"{case['tokens_per_second']:,.0f} | {_share(case['mfu'])} | "
            f"{case['flops'] / peak['flops']:.1%} | {case['peak_bytes'] / 2**30:.1f}, "
            f"{case['estimated_bytes'] / 2**30:.1f} GiB |"
        )
    lines += ["", "| operation | forward | with backward |", "|---|---|---|"]
    for stage in ("ops", "rivals"):
        for name, case in read_record(folder / f"{stage}.json").items():
            if "error" not in case:
                lines.append(
                    f"| {name} | {1e3 * case['forward']:.2f} ms | {1e3 * case['backward']:.2f} ms |"
                )
    failed = [
        f"{name} ({case['worst']:.1e})"
        for name, case in read_record(folder / "errors.json").items()
        if not case.get("is_within", True)
    ]
    lines += ["", f"Outside their tolerance: {', '.join(failed) or 'no operation'}."]
    return "\n".join(lines) + "\n\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def replace_table(begin: str, end: str, table: str) -> None:
    """Replaces what stands between two lines of docs/performance.md."""
    text = PAGE.read_text("utf-8")
    before, _, with_table = text.partition(begin)
    PAGE.write_text(before + begin + table + end + with_table.partition(end)[2], "utf-8")


def main() -> int:
    """Runs the stages that have no complete record yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9, help="time for all stages")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--only", default=",".join(STAGES), help="stages to run, by comma")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script")
    parser.add_argument("--again", action="store_true", help="measure complete stages again")
    parser.add_argument("--table", action="store_true", help="write docs/performance.md and end")
    args = parser.parse_args()
    if args.table:
        replace_table(TABLE_BEGIN, TABLE_END, format_table(args.out))
        return 0
    if unknown := {*args.only.split(",")} - {*STAGES}:
        parser.error(f"--only has {min(unknown)!r}; choose from {', '.join(STAGES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    state_file = args.out / "stages.json"
    state = {} if args.again else read_record(state_file)
    deadline, failed = time.monotonic() + 60 * args.minutes, False
    for name in args.only.split(","):
        remaining = deadline - time.monotonic()
        if state.get(name) == "complete":
            continue
        if remaining < 20:
            print(f"{name}: no time left; run again to go on", flush=True)
            break
        if args.again:
            (args.out / f"{name}.json").unlink(missing_ok=True)
        state[name] = run_stage(name, args, min(STAGES[name], remaining - 15))
        failed |= state[name].startswith("ended")
        state_file.write_text(json.dumps(state, indent=1), "utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
