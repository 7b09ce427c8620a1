"""Regenerate the tables of docs/scale.md: models of published sizes on machines that are not here.

    python benchmarks/scale.py                              every cell, by the estimate
    python benchmarks/scale.py --compile dense8b@v5p:8x8x4  these cells, by their compilers

What was compiled once stays in docs/scale.json until it is compiled again; the tables tell it from
what is estimated. Needs libtpu (`--extra tpu`) and, for H100s, NVIDIA's plugin.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
KEPT, PAGE = ROOT / "docs" / "scale.json", ROOT / "docs" / "scale.md"
MODELS = {
    "dense8b": "dense, 8.0 B",
    "moe8x7b": "MoE, 46.7 B",
    "mamba2_2p7b": "Mamba-2, 2.7 B",
    "hybrid8b": "hybrid, 8.7 B",
}
MACHINES = {  # name: devices
    "v5p:2x2x4": 16,
    "v5p:8x8x4": 256,
    "v5p:16x16x16": 4096,
    "h100:8": 8,
    "h100:256": 256,
}
SHARDS = 256  # devices that parameters are cut over, at most; more are copies
LIMIT = 1800  # seconds for a compilation
BEGIN, END = "<!-- tables: benchmarks/scale.py -->\n", "<!-- end of tables -->\n"


def cell(model: str, machine: str, compile: bool) -> dict[str, Any]:
    """Of one model on one machine, a row of 4,096 tokens a device."""
    from training import launch, memory, preflight, report, targets
    from training.flags import load
    from training.settings import Settings
    from training.tree import frozen

    c = load(str(ROOT / "configs" / "scale" / f"{model}.py"), Settings)
    c.train.batch = MACHINES[machine]
    c.mesh.replica = max(1, MACHINES[machine] // SHARDS)
    where = targets.target(machine)
    _, made = launch.prepared(frozen(Settings, c), where.devices)
    parts = memory.estimate(made)
    found = {
        "parameters": report.priced(made.settings).params,
        "state": parts["parameters"] + parts["optimizer"],
        "needed": sum(parts.values()),
        "memory": where.chip.memory,
        "compiled": False,
    }
    if compile:
        out = preflight.compiled(made, where.chip)
        sent = {kind: list(traffic) for kind, traffic in out.traffic.items()}
        found |= {"compiled": True, "needed": out.needed, "fits": out.fits, "sent": sent}
        found |= {"seconds": round(out.seconds)}
    return found


def tables(cells: dict[str, Any]) -> str:
    """Memory of all cells, then what the compiled ones send."""
    head = "| model | " + " | ".join(MACHINES) + " |\n|---|" + "---|" * len(MACHINES) + "\n"
    lines = []
    for model, words in MODELS.items():
        row = [_memory(cells.get(f"{model}@{machine}")) for machine in MACHINES]
        lines.append(f"| {words} | " + " | ".join(row) + " |\n")
    text = "GiB a device, of state (parameters and optimizer) and in all:\n\n" + head
    text += "".join(lines) + "\nSent in a step by each device, where it was compiled:\n\n"
    text += "| cell | collectives (times, GiB) | compiled in |\n|---|---|---|\n"
    for name, found in sorted(cells.items()):
        if found["compiled"]:
            sent = [f"{k} {n:,}, {b / 2**30:.1f}" for k, (n, b) in found["sent"].items()]
            text += f"| {name} | {'; '.join(sent) or '-'} | {found['seconds']} s |\n"
    return text


def _memory(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    state, needed = found["state"] / 2**30, found["needed"] / 2**30
    fits = found["fits"] if found["compiled"] else found["needed"] <= found["memory"]
    text = f"{state:.1f}, {needed:.1f}"
    text = f"**{text}**" if found["compiled"] else f"~ {text}"
    return text if fits else f"{text} (does not fit)"


def computed(names: list[str], compile: bool) -> dict[str, Any]:
    """Cells by name, from a process of their own that keeps to the CPU."""
    command = [sys.executable, __file__, "--cells", *names]
    command += ["--compile", *names] if compile else []
    # Set before JAX is imported; libtpu would ask the cloud where it is.
    set_for = ["env", "JAX_PLATFORMS=cpu", "TPU_SKIP_MDS_QUERY=1"]
    try:
        done = subprocess.run(
            [*set_for, *command], stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True
        )
    except subprocess.SubprocessError as error:
        print(f"{', '.join(names)}: {error}", file=sys.stderr)
        return {}
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", nargs="*", default=[], metavar="MODEL@MACHINE")
    parser.add_argument("--cells", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cells:
        for name in args.cells:
            print(json.dumps([name, cell(*name.split("@"), compile=bool(args.compile))]))
        return
    cells = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    every = [f"{m}@{d}" for m in MODELS for d in MACHINES]
    rest = [name for name in every if not cells.get(name, {}).get("compiled")]
    for names in [[name] for name in args.compile] or [rest]:
        cells |= computed(names, compile=bool(args.compile))
        KEPT.write_text(json.dumps(cells, indent=1, sort_keys=True) + "\n")
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + tables(cells) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
