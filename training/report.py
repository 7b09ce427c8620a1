"""What a run would be, before it starts: settings and their origin, parameters, FLOPs, memory."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from arch import Cost, cost
from arch.cost import joined, mean
from objectives import Rows
from training import banks
from training.console import printable
from training.flags import rows
from training.mesh import AXES
from training.program import Program
from training.settings import Settings
from training.targets import Target

if TYPE_CHECKING:  # it shows its outcome by what stands here
    from training.preflight import Outcome

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def priced(settings: Settings) -> Cost:
    """The cost of the model of `settings` on the rows it trains on: of one position, which in a
    mixture is the mean over those of all its parts."""
    found = [*_read(settings, max(settings.train.steps, 1))]
    bills, whole = [read.bill for read in found], sum(read.positions for read in found)
    return bills[0] if len(bills) == 1 else mean(bills, [read.positions / whole for read in found])


def positions(settings: Settings) -> int:
    """Positions of the whole run that cost what `priced` says one costs; one that is read without
    a gradient, to mine negatives, counts as a third."""
    return round(sum(read.positions for read in _read(settings, settings.train.steps)))


def executed(settings: Settings) -> float:
    """Executed FLOPs of training for each of `positions`, forward and backward as they run: with
    what rematerialised blocks compute again, and the pass without a gradient that makes the
    representations which accumulation caches (`training/gradients.py`)."""
    total = whole = 0.0
    for read in _read(settings, max(settings.train.steps, 1)):
        passes = 3 + (settings.train.accumulate > 1 and not read.additive)
        with_gradient = passes * read.bill.executed_flops + read.bill.recomputed_flops
        total += read.learnt * with_gradient + read.looked * read.bill.executed_flops
        whole += read.positions
    return total / whole


class _Read(NamedTuple):
    """What a part of a mixture reads in so many steps."""

    bill: Cost
    additive: bool
    learnt: float  # positions with a gradient
    looked: float  # and without one, to mine negatives

    @property
    def positions(self) -> float:
        return self.learnt + self.looked / 3


def _read(settings: Settings, steps: int) -> Iterator[_Read]:
    train = settings.train
    for member in settings.members():
        rows = member.objective.rows(settings.model, train.length)
        learnt = steps * train.batch * rows.positions(train.length)
        looked = banks.reads(settings, member, steps)
        yield _Read(_bill(settings, rows), member.objective.additive, learnt, looked)


def _bill(settings: Settings, rows: Rows) -> Cost:
    length = rows.tokens or settings.train.length
    share = (rows.targets or length) / length if rows.logits else 0.0
    found = cost(settings.model, length, view=rows.view, source=rows.source, logits=share)
    return joined(found, rows.own) if rows.own else found


def tables(program: Program, origins: dict[str, str], memory: dict[str, int]) -> list[Table]:
    """Everything a dry run prints."""
    settings, bill = program.settings, priced(program.settings)
    return [
        _settings(settings, origins),
        _parameters(bill),
        _flops(bill, settings),
        _memory(memory, program),
    ]


def show(items: list[Table], console: Console | None = None) -> None:
    console = console or Console()
    for item in items:
        console.print(item)


def tell(scores: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """The last word of a run: its scores, and where everything is."""
    console = console or Console(highlight=False, force_jupyter=False)
    width = max(map(len, scores), default=0) + 2
    for name, value in scores.items():
        text = value if isinstance(value, str) else f"{value:.4f}"
        console.print(f"{name:{width}}{printable(text)}", markup=False, soft_wrap=True)
    console.print(f"everything is in {folder}/", markup=False)


def short(number: float) -> str:
    """Three digits and a unit: 6.74G."""
    for size, unit in UNITS:
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def summary(cost: Cost, settings: Settings) -> dict[str, Any]:
    """The cost as run.json records it; FLOPs are of each of `run_positions` tokens."""
    return {
        "run_positions": positions(settings),
        "params": cost.params,
        "active_params": cost.active_params,
        "body_params": cost.body_params,
        "parts": cost.parts,
        "model_flops": cost.model_flops,
        "executed_flops": cost.executed_flops,
        "body_flops": cost.body_flops,
        "training_flops": cost.training_flops,
        "executed_training_flops": executed(settings),
        "terms": {name: dataclasses.asdict(work) for name, work in cost.terms.items()},
        "state_bytes": cost.state_bytes,
    }


def _settings(settings: Settings, origins: dict[str, str]) -> Table:
    table = Table("setting", "value", "from", title="Settings")
    for key, value, origin in rows(settings, origins):
        table.add_row(key, value, origin, style=None if origin == "default" else "bold")
    return table


def _parameters(bill: Cost) -> Table:
    table = Table("part", "parameters", title="Parameters")
    for name, count in bill.parts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("all", f"{bill.params:,}", style="bold")
    table.add_row("active", f"{bill.active_params:,}")
    table.add_row("without embedding and head", f"{bill.body_params:,}")
    return table


def _flops(bill: Cost, settings: Settings) -> Table:
    tokens = positions(settings)
    table = Table("term", "model", "executed", title="FLOPs per token, forward")
    for name, work in bill.terms.items():
        note = " (elementwise)" if work.elementwise else ""
        table.add_row(name + note, f"{work.model:,.0f}", f"{work.executed:,.0f}")
    table.add_row("all", f"{bill.model_flops:,.0f}", f"{bill.executed_flops:,.0f}", style="bold")
    table.add_row("without the head", f"{bill.body_flops:,.0f}", "")
    run = f"{short(3 * bill.model_flops * tokens)}FLOP"
    table.add_row(f"training, {short(tokens)} tokens", run, "")
    return table


def _memory(memory: dict[str, int], program: Program) -> Table:
    shape = ", ".join(f"{axis}={program.mesh.shape[axis]}" for axis in AXES)
    table = Table("component", "per device", title=f"Memory, mesh {shape}")
    for name, count in memory.items():
        table.add_row(name, mebibytes(count))
    table.add_row("all", mebibytes(sum(memory.values())), style="bold")
    return table


def outcome(found: "Outcome", program: Program, where: Target, estimate: int) -> list[Table]:
    """What compiling a step for `where` gave: memory by component, and what is sent."""
    return [_held(found, program, where, estimate), _sent(found, program)]


def _held(found: "Outcome", program: Program, where: Target, estimate: int) -> Table:
    word = "Compiled" if found.memory else "Refused by the compiler"
    count = len(where.devices)
    title = f"{word} in {found.seconds:.1f} s for {where.name} ({count} devices)"
    table = Table("component", "per device", title=title)
    if found.memory:
        state = program.state
        parts = {
            "parameters": bytes_per_device(state.learner),
            "optimizer": bytes_per_device((state.optimizer, state.guard, state.banks)),
            "batch": bytes_per_device(program.batch),
        }
        rest = {name: size for name, size in found.memory.items() if name != "arguments"}
        for name, size in (parts | rest).items():
            table.add_row(name, mebibytes(size))
    table.add_row("all", mebibytes(found.needed), style="bold")
    if found.needed:
        table.add_row("estimate", f"{mebibytes(estimate)} ({estimate / found.needed:.0%})")
    if where.chip.memory:
        share = f" ({found.needed / where.chip.memory:.0%} taken)" if found.needed else ""
        table.add_row("memory of the device", f"{mebibytes(where.chip.memory)}{share}")
        table.add_row("fits" if found.fits else "does not fit", "", style="bold")
    return table


def _sent(found: "Outcome", program: Program) -> Table:
    train, bill = program.settings.train, priced(program.settings)
    work = short(3 * bill.model_flops * train.batch * train.length)
    title = f"Sent in a step of {work}FLOP (model, forward and backward)"
    table = Table("collective", "times", "bytes per device", title=title)
    for kind, traffic in found.traffic.items():
        table.add_row(kind, f"{traffic.times:,}", mebibytes(traffic.bytes))
    if not found.traffic:
        table.add_row("none", "", "")
    return table


def gibibytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def bytes_per_device(tree: Any) -> int:
    """Of arrays or shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
