"""Compares training speed with Hugging Face transformers + torch on the same CPU cores.

    uv run benchmarks/peers.py                                  all shapes
    uv run benchmarks/peers.py --models=dense --widths=384      some of them
    uv run benchmarks/peers.py --table                          writes docs/performance.md again

Both sides train the same shapes: a whole AdamW step, weights in float32, products in float32 or
bfloat16. Each side is a process of its own. The processes take turns, one step each, so that other
load slows both alike; the figure is the median of the ratios of neighboring steps. The peak of the
machine, a product of two large square matrices, is measured by both in the same run. torch
and transformers go into an environment of their own (`--env`), which the first run makes; they are
no dependency of the project. Without a network the script says so and measures isoflop alone.

Gated DeltaNet has no peer in torch without a GPU. Its peer is this project's Mamba-2 of the same
width, and the ratio is that of FLOP/s: what both train at equal FLOPs.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS_FILE, PAGE = ROOT / "docs" / "performance.json", ROOT / "docs" / "performance.md"
TABLE_BEGIN, TABLE_END = "<!-- table: benchmarks/peers.py -->\n", "<!-- end of table -->\n"
PEER_PACKAGES = ("torch==2.13.0", "transformers>=5.0", "numpy")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
MODELS = ("dense", "moe", "mamba2", "mamba1", "deltanet")
NO_PEER = ("mamba1",)  # the pure torch form, a Python loop over tokens, takes over 50 s a step
OWN_PEERS = {"deltanet": "mamba2"}  # models of this project that another one is compared with
SHAPES = {256: 8, 1024: 2}  # batch size by tokens per row
DEPTH, VOCAB = 6, 8192


class Case(NamedTuple):
    """One cell of the table: a model, its width and dtype, and the shape of a batch."""

    model: str
    width: int
    seq_len: int
    batch_size: int
    dtype: str


class Worker:
    """A process that trains one case, one step per request."""

    def __init__(self, python: Path | str, script: str, case: Case):
        # -P: the folder of the script, with benchmarks/ops.py, must not hide the room `ops`.
        argv = [str(python), "-P", str(Path(__file__).parent / script), json.dumps(case._asdict())]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._read()  # versions and model FLOPs, sent when it has compiled

    def ask(self, request: str) -> float:
        """Returns the seconds of a "step", or the FLOP/s of a "peak"."""
        assert self._process.stdin
        print(request, file=self._process.stdin, flush=True)
        return float(self._read()["value"])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a benchmark process ended with code {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def peer_python(folder: Path) -> Path | None:
    """Returns the Python with torch and transformers in `folder`, which is made if necessary.

    None if the packages can neither be found nor installed.
    """
    python = folder / "bin" / "python"
    check = [str(python), "-c", "import torch, transformers"]
    if python.exists() and subprocess.run(check, capture_output=True).returncode == 0:
        return python
    print(f"Installing {', '.join(PEER_PACKAGES)} in {folder} ...", flush=True)
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    # The wheels for CPUs are much smaller; a mirror may have only the others.
    for extra in (["--extra-index-url", CPU_WHEELS], []):
        done = subprocess.run([*pip, *extra, *PEER_PACKAGES], capture_output=True, text=True)
        if done.returncode == 0:
            return python
    reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    print(f"No peer: {reason}; isoflop is measured alone.", flush=True)
    return None


def measure(case: Case, peer: Path | None, rounds: int) -> dict[str, Any]:
    """Returns the figures of one case: tokens/s, ratio to the peer, and share of the peak."""
    workers = {"isoflop": Worker(sys.executable, "peers_isoflop.py", case)}
    if own_peer := OWN_PEERS.get(case.model):
        workers[own_peer] = Worker(
            sys.executable, "peers_isoflop.py", case._replace(model=own_peer)
        )
    elif peer and case.model not in NO_PEER:
        workers["torch"] = Worker(peer, "peers_torch.py", case)
    peer_name = next((name for name in workers if name != "isoflop"), "")
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    peaks: dict[str, list[float]] = {name: [] for name in workers}
    for index in range(rounds + 2):
        for name, worker in workers.items():
            elapsed = worker.ask("step")
            if index >= 2:  # the first steps allocate memory
                seconds[name].append(elapsed)
                peaks[name].append(worker.ask("peak"))
    tokens = case.batch_size * case.seq_len
    speed = tokens / statistics.median(seconds["isoflop"])
    peak = statistics.median(peaks["isoflop"])
    flops = workers["isoflop"].facts["training_flops"]
    result: dict[str, Any] = case._asdict() | {
        "tokens_per_second": speed,
        "peak": peak,
        "share_of_peak": flops * speed / peak,
        "versions": {name: worker.facts["versions"] for name, worker in workers.items()},
    }
    if peer_name:
        pairs = zip(seconds[peer_name], seconds["isoflop"], strict=True)
        # The same shapes in torch have the same FLOPs, and state none.
        more_flops = flops / workers[peer_name].facts.get("training_flops", flops)
        ratios = sorted(more_flops * peer_time / time for peer_time, time in pairs)
        quarter = len(ratios) // 4
        result |= {
            "peer": peer_name,
            "peer_tokens_per_second": tokens / statistics.median(seconds[peer_name]),
            "peer_peak": statistics.median(peaks[peer_name]),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]],
        }
    for worker in workers.values():
        worker.close()
    return result


def extend_record(record: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """Returns `record` with the cases of an earlier one of the same machine."""
    machine = {name: earlier[name] for name in ("cores", "machine")}
    if machine != {name: record[name] for name in machine}:
        sys.exit(f"{RESULTS_FILE.name} is of another machine ({machine}): move it away to save")
    return record | {"cases": earlier["cases"]}


def replace_case(cases: list[dict[str, Any]], result: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the cases with a new result, which replaces an earlier one."""
    by_case = {tuple(case[name] for name in Case._fields): case for case in cases}
    by_case[tuple(result[name] for name in Case._fields)] = result
    return list(by_case.values())


def sort_key(case: dict[str, Any]) -> tuple[int, int, int, bool]:
    """Returns what orders the rows of the table."""
    model = MODELS.index(case["model"])
    return model, case["width"], case["seq_len"], case["dtype"] != "float32"


def format_row(result: dict[str, Any]) -> str:
    """Returns one row of the table in Markdown."""
    shape = f"{result['batch_size']} x {result['seq_len']}"
    cells = [result["model"], result["width"], shape, result["dtype"]]
    cells += [f"{result['tokens_per_second']:,.0f}", f"{result['peak'] / 1e9:,.0f}"]
    cells += [f"{result['share_of_peak']:.2f}"]
    if "ratio" in result:
        low, high = result["ratio_quartiles"]
        cells += [result["peer"], f"{result['peer_tokens_per_second']:,.0f}"]
        cells += [f"**{result['ratio']:.2f}** ({low:.2f} to {high:.2f})"]
    else:
        cells += ["", "", ""]
    return "| " + " | ".join(map(str, cells)) + " |"


def format_table(record: dict[str, Any]) -> str:
    """Returns the table of docs/performance.md."""
    if not record["cases"]:
        return "\nNot run yet.\n\n"
    versions: dict[str, str] = {}
    for result in record["cases"]:
        for names in result["versions"].values():
            versions |= names
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    lines = [
        f"Measured on {record['cores']} cores ({record['machine']}) with {listed}:",
        "",
        "| model | width | batch | dtype | tokens/s | peak, GFLOP/s | of peak | peer | "
        "its tokens/s | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(format_row, sorted(record["cases"], key=sort_key)),
    ]
    return "\n" + "\n".join(lines) + "\n\n"


def write_page(record: dict[str, Any]) -> None:
    """Replaces the table in docs/performance.md."""
    text = PAGE.read_text("utf-8")
    before, _, with_table = text.partition(TABLE_BEGIN)
    after = with_table.partition(TABLE_END)[2]
    PAGE.write_text(before + TABLE_BEGIN + format_table(record) + TABLE_END + after, "utf-8")


def main() -> None:
    """Measures the requested cases and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="Models, by comma.")
    parser.add_argument("--widths", default="384,512", help="Widths of the model.")
    parser.add_argument("--lengths", default="256,1024", help="Tokens per row: 256 or 1024.")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="Dtypes of the products.")
    parser.add_argument("--rounds", type=int, default=8, help="Measured steps of each side.")
    parser.add_argument("--env", default="~/.cache/isoflop/peers", help="Environment of the peer.")
    parser.add_argument("--save", action="store_true", help="Record the run in docs/.")
    parser.add_argument("--table", action="store_true", help="Write the page from the record.")
    args = parser.parse_args()
    if args.table:
        write_page(json.loads(RESULTS_FILE.read_text("utf-8")))
        return
    if unknown := {*args.models.split(",")} - {*MODELS}:
        parser.error(f"--models has {min(unknown)!r}; choose from {', '.join(MODELS)}")
    needs_torch = {*args.models.split(",")} - {*NO_PEER, *OWN_PEERS}
    peer = peer_python(Path(args.env).expanduser()) if needs_torch else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    record = {"cores": cores, "machine": platform.machine(), "cases": list[dict[str, Any]]()}
    if args.save and RESULTS_FILE.exists():
        record = extend_record(record, json.loads(RESULTS_FILE.read_text("utf-8")))
    grid = itertools.product(
        args.models.split(","),
        map(int, args.widths.split(",")),
        map(int, args.lengths.split(",")),
        args.dtypes.split(","),
    )
    for model, width, length, dtype in grid:
        case = Case(model, width, length, SHAPES.get(length, max(1, 2048 // length)), dtype)
        result = measure(case, peer, args.rounds)
        print(format_row(result), flush=True)
        record["cases"] = replace_case(record["cases"], result)
        if args.save:
            RESULTS_FILE.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    if args.save:
        write_page(record)


if __name__ == "__main__":
    main()
