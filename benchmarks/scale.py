"""Regenerates the tables of docs/scale.md for models of published sizes on machines without access.

    python benchmarks/scale.py                              estimates every cell
    python benchmarks/scale.py --compile dense8b@v5p:8x8x4  compiles these cells

A compiled cell stays in docs/scale.json until it is compiled again, and the tables distinguish it
from estimates. Compilation needs libtpu (`--extra tpu`) and, for H100s, NVIDIA's plugin.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
CELLS_FILE, TABLES_FILE = ROOT / "docs" / "scale.json", ROOT / "docs" / "scale.md"
MODELS = {
    "dense8b": "dense, 8.0 B",
    "moe8x7b": "MoE, 46.7 B",
    "mamba2_2p7b": "Mamba-2, 2.7 B",
    "hybrid8b": "hybrid, 8.7 B",
}
MACHINES = {  # number of devices by name
    "v5p:2x2x4": 16,
    "v5p:8x8x4": 256,
    "v5p:16x16x16": 4096,
    "h100:8": 8,
    "h100:256": 256,
}
MAX_SHARDS = 256  # limit of the devices that shard parameters; beyond it, replicas are added
COMPILE_TIMEOUT = 1800  # seconds for one process
TABLES_BEGIN, TABLES_END = "<!-- tables: benchmarks/scale.py -->\n", "<!-- end of tables -->\n"


def estimate_cell(model: str, machine: str, use_compiler: bool) -> dict[str, Any]:
    """Returns the memory of a model on a machine, with a row of 4,096 tokens per device."""
    from settings.cli import load_config
    from settings.tree import freeze
    from training import accounting, runner
    from training.preflight import check, memory_estimate, topology
    from training.settings import Settings

    c = load_config(str(ROOT / "configs" / "scale" / f"{model}.py"), Settings)
    c.train.batch_size = MACHINES[machine]
    c.mesh.replica = max(1, MACHINES[machine] // MAX_SHARDS)
    target = topology.parse_topology(machine)
    _, program = runner.prepare(freeze(Settings, c), target.devices)
    parts = memory_estimate.estimate(program)
    cell: dict[str, Any] = {
        "parameters": accounting.model_cost(program.settings).params,
        "state": parts["parameters"] + parts["optimizer"],
        "required": sum(parts.values()),
        "memory": target.chip.memory_bytes,
        "compiled": False,
    }
    if use_compiler:
        result = check.try_compile(program, target.chip)
        collectives = {kind: list(traffic) for kind, traffic in result.traffic.items()}
        cell |= {"compiled": True, "required": result.total_bytes, "fits": result.fits}
        cell |= {"collectives": collectives, "seconds": round(result.seconds)}
    return cell


def format_tables(cells: dict[str, Any]) -> str:
    """Returns the tables of the memory of all cells and of the collectives of compiled ones."""
    head = "| model | " + " | ".join(MACHINES) + " |\n|---|" + "---|" * len(MACHINES) + "\n"
    lines = []
    for model, label in MODELS.items():
        row = [_format_memory(cells.get(f"{model}@{machine}")) for machine in MACHINES]
        lines.append(f"| {label} | " + " | ".join(row) + " |\n")
    text = "GiB per device for the state (parameters and optimizer), and in total:\n\n" + head
    text += "".join(lines) + "\nCollectives in a step of one device, for compiled cells:\n\n"
    text += "| cell | collectives (number, GiB) | compile time |\n|---|---|---|\n"
    for name, cell in sorted(cells.items()):
        if cell["compiled"]:
            kinds = [f"{k} {n:,}, {b / 2**30:.1f}" for k, (n, b) in cell["collectives"].items()]
            text += f"| {name} | {'; '.join(kinds) or '-'} | {cell['seconds']} s |\n"
    return text


def _format_memory(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "-"
    fits = cell["fits"] if cell["compiled"] else cell["required"] <= cell["memory"]
    text = f"{cell['state'] / 2**30:.1f}, {cell['required'] / 2**30:.1f}"
    text = f"**{text}**" if cell["compiled"] else f"~ {text}"
    return text if fits else f"{text} (does not fit)"


def compute_cells(names: list[str], use_compiler: bool) -> dict[str, Any]:
    """Computes cells in a separate process that uses only the CPU, and returns them by name."""
    command = [sys.executable, __file__, "--cells", *names]
    command += ["--compile", *names] if use_compiler else []
    # These variables must be set before JAX is imported; libtpu would query the cloud's metadata.
    environment = ["env", "JAX_PLATFORMS=cpu", "TPU_SKIP_MDS_QUERY=1"]
    try:
        process = subprocess.run(
            [*environment, *command],
            stdout=subprocess.PIPE,
            text=True,
            timeout=COMPILE_TIMEOUT,
            check=True,
        )
    except subprocess.SubprocessError as error:
        print(f"{', '.join(names)}: {error}", file=sys.stderr)
        return {}
    return dict(json.loads(line) for line in process.stdout.splitlines() if line.startswith('["'))


def main() -> None:
    """Computes the cells that the command line selects, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", nargs="*", default=[], metavar="MODEL@MACHINE")
    parser.add_argument("--cells", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cells:
        for name in args.cells:
            print(
                json.dumps([name, estimate_cell(*name.split("@"), use_compiler=bool(args.compile))])
            )
        return
    cells = json.loads(CELLS_FILE.read_text()) if CELLS_FILE.exists() else {}
    names = [f"{model}@{machine}" for model in MODELS for machine in MACHINES]
    estimated = [name for name in names if not cells.get(name, {}).get("compiled")]
    for group in [[name] for name in args.compile] or [estimated]:
        cells |= compute_cells(group, use_compiler=bool(args.compile))
        CELLS_FILE.write_text(json.dumps(cells, indent=1, sort_keys=True) + "\n")
    page = TABLES_FILE.read_text()
    before, _, tail = page.partition(TABLES_BEGIN)
    after = tail.partition(TABLES_END)[2]
    TABLES_FILE.write_text(before + TABLES_BEGIN + format_tables(cells) + TABLES_END + after)


if __name__ == "__main__":
    main()
