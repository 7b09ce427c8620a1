"""Tables and lines that a dry run, a preflight check and the end of a run print."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from arch import Cost
from data.chats.templates import describe_chats
from data.tokenizers import Tokenizer
from formatting import format_mib, format_si, replace_control_chars
from settings.tree import setting_rows
from storage import scratch
from training.accounting import model_cost, run_tokens
from training.mesh import MESH_AXES, bytes_per_device
from training.preflight import roofline
from training.preflight.check import CompileResult
from training.preflight.topology import CompileTarget
from training.program import TrainProgram
from training.settings import Settings
from training.text_reading import FRAMING_LABELS


def dry_run_tables(
    program: TrainProgram, origins: dict[str, str], estimate: dict[str, int]
) -> list[Table]:
    """Returns the tables of a dry run: settings, parameters, FLOPs and the memory estimate.

    `origins` has the origin of each setting by its dotted key, `estimate` bytes per device by
    component.
    """
    settings, cost = program.settings, model_cost(program.settings)
    return [
        _settings_table(settings, origins),
        _params_table(cost),
        _flops_table(cost, settings),
        _estimate_table(estimate, program),
    ]


def framing_table(framing: Mapping[str, str]) -> Table:
    """Returns a table of what frames texts, in the words of `run_framing`."""
    table = Table("texts", "", title="Framing")
    for name, text in framing.items():
        table.add_row(FRAMING_LABELS[name], Text(replace_control_chars(text)))
    return table


def chat_table(template: str, tokenizer: Tokenizer) -> Table:
    """Returns a table that says how chats are read (`data.chat_template`)."""
    table = Table("chats", "", title="Chats")
    for name, text in describe_chats(template, tokenizer):
        table.add_row(name, Text(replace_control_chars(text)))
    return table


def compile_tables(
    result: CompileResult, program: TrainProgram, target: CompileTarget, estimated_bytes: int
) -> list[Table]:
    """Returns the tables of a compiled step: memory by component, and collectives.

    `estimated_bytes` is the total of the memory estimate per device, shown for comparison.
    """
    return [
        _memory_table(result, program, target, estimated_bytes),
        _collectives_table(result, program),
    ]


def roofline_table(
    program: TrainProgram, target: CompileTarget, result: CompileResult, estimated_bytes: int
) -> Table | None:
    """Returns the estimated time of a compiled step, or None if the chip's speed is not known.

    `estimated_bytes` is the total of the memory estimate per device.
    """
    speed = roofline.CHIP_SPEEDS.get(target.name.partition(":")[0])
    if speed is None:
        return None
    step = roofline.estimate_step(program, speed, result.traffic)
    settings, num_devices = program.settings, len(target.devices)
    hours = step.seconds * settings.train.steps * num_devices / 3600
    tokens = run_tokens(settings) / max(settings.train.steps, 1)
    table = Table("of a step", "estimate", title=f"Time by a roofline, {target.name}")
    table.add_row("products", f"{1e3 * step.products:.3g} ms")
    table.add_row("memory traffic", f"{1e3 * step.memory:.3g} ms")
    table.add_row("collectives", f"{1e3 * step.collectives:.3g} ms")
    table.add_row("step", f"{1e3 * step.seconds:.3g} ms", style="bold")
    table.add_row("longest", step.bottleneck)
    table.add_row("tokens/s and device", f"{tokens / step.seconds / num_devices:,.0f}")
    table.add_row(
        "model FLOP utilization", f"{step.mfu:.1%} of {format_si(speed.peak_flops)}FLOP/s"
    )
    table.add_row(f"run, {settings.train.steps:,} steps", f"{hours:.3g} chip-hours")
    if crossover := roofline.crossover(settings.model, speed):
        other, length = crossover
        verb = "is faster" if other != "attention" else "is slower"
        table.add_row(f"{other} {verb} from", f"{length:,} tokens")
    limit = (target.chip.memory_bytes or 0) * estimated_bytes / max(result.total_bytes, 1)
    if faster := roofline.faster_setting(program, speed, limit):
        (key, value), seconds = faster
        table.add_row(f"faster: --config.{key}={value}", f"{1e3 * seconds:.3g} ms")
    table.caption = (
        f"Assumed: products with weights at {speed.sustained:.0%} of the peak, those of experts "
        f"at {roofline.GROUPED_SHARE['ragged']:.0%} of that and those of activations at "
        f"{roofline.BATCHED_SHARE:.0%}, {speed.memory_bandwidth / 1e12:.2f} TB/s of memory, "
        f"{speed.link_bandwidth / 1e9:.0f} GB/s between devices, "
        f"{speed.network_bandwidth / 1e9:.0f} GB/s between hosts, "
        "collectives hidden behind computation"
    )
    return table


def print_tables(tables: list[Table], console: Console | None = None) -> None:
    """Prints tables to the terminal, or to `console`."""
    console = console or Console()
    for table in tables:
        console.print(table)


def print_scores(
    scores: Mapping[str, float | str], folder: Path, console: Console | None = None
) -> None:
    """Prints the scores of a finished run and its folder."""
    console = console or Console(highlight=False, force_jupyter=False)
    width = max(map(len, scores), default=0) + 2
    for name, value in scores.items():
        text = value if isinstance(value, str) else f"{value:.4f}"
        console.print(f"{name:{width}}{replace_control_chars(text)}", markup=False, soft_wrap=True)
    url = scratch.url_of(folder)
    local = f"{folder}/" if folder.name else str(folder)  # "/" is a name of a folder, "//" none.
    shown = f"{url}/ (scratch folder: {local})" if url else local
    console.print(f"Run folder: {shown}", markup=False, soft_wrap=True)


def _settings_table(settings: Settings, origins: dict[str, str]) -> Table:
    table = Table("setting", "value", "from", title="Settings")
    for key, value, origin in setting_rows(settings, origins):
        table.add_row(key, value, origin, style=None if origin == "default" else "bold")
    return table


def _params_table(cost: Cost) -> Table:
    table = Table("part", "parameters", title="Parameters")
    for name, count in cost.parts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("all", f"{cost.params:,}", style="bold")
    table.add_row("active", f"{cost.active_params:,}")
    table.add_row("without embedding and head", f"{cost.non_embedding_params:,}")
    return table


def _flops_table(cost: Cost, settings: Settings) -> Table:
    tokens = run_tokens(settings)
    table = Table("term", "model", "executed", title="FLOPs per token, forward")
    for name, term in cost.terms.items():
        note = " (elementwise)" if term.elementwise else ""
        table.add_row(name + note, f"{term.model:,.0f}", f"{term.executed:,.0f}")
    table.add_row("all", f"{cost.model_flops:,.0f}", f"{cost.executed_flops:,.0f}", style="bold")
    table.add_row("without the head", f"{cost.non_embedding_flops:,.0f}", "")
    run_flops = format_si(3 * cost.model_flops * tokens, "FLOPs")
    table.add_row(f"training, {format_si(tokens)} tokens", run_flops, "")
    return table


def _estimate_table(estimate: dict[str, int], program: TrainProgram) -> Table:
    shape = ", ".join(f"{axis}={program.mesh.shape[axis]}" for axis in MESH_AXES)
    table = Table("component", "per device", title=f"Memory estimate, mesh {shape}")
    for name, count in estimate.items():
        table.add_row(name, format_mib(count))
    table.add_row("all", format_mib(sum(estimate.values())), style="bold")
    return table


def _memory_table(
    result: CompileResult, program: TrainProgram, target: CompileTarget, estimated_bytes: int
) -> Table:
    status = "Compiled" if result.memory else "Compilation failed"
    title = f"{status} in {result.seconds:.1f} s for {target.name} ({len(target.devices)} devices)"
    table = Table("component", "per device", title=title)
    if result.memory:
        state = program.abstract_state
        arguments = {
            "parameters": bytes_per_device(state.trainable),
            "optimizer": bytes_per_device((state.opt_state, state.guard, state.banks)),
            "batch": bytes_per_device(program.abstract_batch),
        }
        temporary = {name: n for name, n in result.memory.items() if name != "arguments"}
        for name, count in (arguments | temporary).items():
            table.add_row(name, format_mib(count))
    total = result.total_bytes
    table.add_row("all", format_mib(total), style="bold")
    if total:
        ratio = estimated_bytes / total
        table.add_row("estimate", f"{format_mib(estimated_bytes)} ({ratio:.0%})")
    if limit := target.chip.memory_bytes:
        used = f" ({total / limit:.0%} used)" if total else ""
        table.add_row("device memory", f"{format_mib(limit)}{used}")
        table.add_row("fits" if result.fits else "does not fit", "", style="bold")
    return table


def _collectives_table(result: CompileResult, program: TrainProgram) -> Table:
    train, cost = program.settings.train, model_cost(program.settings)
    step_flops = format_si(3 * cost.model_flops * train.batch_size * train.seq_len, "FLOPs")
    title = f"Communication per step of {step_flops} (model, forward and backward)"
    table = Table("collective", "calls", "bytes per device", title=title)
    for kind, traffic in result.traffic.items():
        table.add_row(kind, f"{traffic.num_calls:,}", format_mib(traffic.bytes))
    if not result.traffic:
        table.add_row("none", "", "")
    return table
