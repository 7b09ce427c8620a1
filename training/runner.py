"""From settings to a run: data, mesh, program, run folder and loop, or the report of a dry run."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from arch.channels.moe import MoeConfig
from data.open_stores import Data, open_data
from data.round_trip import lossy_sentence
from data.splits import SPLITS
from data.store import TokenStore
from data.text_rows import cut_sentence
from errors import CheckpointError, ConfigError
from objectives import Trainable
from settings.json_types import JsonObject
from settings.tree import as_json
from storage import scratch
from training import accounting, loop
from training import mesh as meshes
from training.checkpoint.initial_params import (
    ParamCheck,
    ParamReader,
    params_from_run,
    source_hash,
)
from training.checkpoint.manager import CheckpointManager
from training.checkpoint.manifest import inspect_folder
from training.compile_cache import use_compile_cache
from training.distributed import multihost
from training.distributed.fault_injection import FaultInjector
from training.distributed.peer_monitor import PeerMonitor
from training.distributed.preemption import GracefulStop
from training.energy import EnergyMeter
from training.loop import Evaluator, TrainJob
from training.preflight import check, memory_estimate, report, topology
from training.program import TrainProgram, make_program
from training.run import provenance
from training.run.console import LOGGER
from training.run.folder import RunFolder
from training.run.log import MetricsLogger
from training.run.open_folder import check_folder, open_as_worker, open_run
from training.run.resume_check import SOURCE_HASH
from training.run.settings import LogConfig
from training.settings import Settings, resolve
from training.text_reading import run_framing

# Settings that may change between attempts at the same run.
MAY_CHANGE_ON_RESUME = (
    "train.steps",
    "train.grad_accum_steps",
    "train.compile_cache",
    "train.hang_timeout",
    "mesh.*",
    "eval.*",
    "checkpoint.*",
    "log.*",
    "debug.*",
    "data.cache",
)


def prepare(
    settings: Settings, devices: list[jax.Device] | None = None
) -> tuple[Data, TrainProgram]:
    """Returns the data and the program of a run, fully checked; nothing is compiled yet.

    Raises:
        ConfigError: if settings, data and devices do not suit each other.
        DataError: if the data cannot be read.
    """
    use_compile_cache(settings.train.compile_cache)
    data = open_data(settings.data, settings.store_kinds)
    if (sentence := lossy_sentence(data.decodes_back)) and multihost.is_main_process():
        LOGGER.warning(sentence)
    preferences = data.select("preferences")
    settings = resolve(settings, data.tokenizer.vocab_size, preferences.record_counts)
    for sentence in (*_router_sentences(settings), *_cut_sentences(settings, preferences)):
        LOGGER.warning(sentence)
    return data, make_program(settings, meshes.make_mesh(settings.mesh, devices))


def _router_sentences(settings: Settings) -> Iterator[str]:
    """Yields a sentence if the loss does not train a router, on the main process."""
    channels = [parts.channel_config for parts in settings.model.distinct_parts()]
    is_constant = any(isinstance(cfg, MoeConfig) and cfg.has_constant_weights for cfg in channels)
    if is_constant and multihost.is_main_process():
        yield (
            "model.moe.top_k is 1 and model.moe.normalize_weights is true: the weight of a token's "
            "only expert is always 1, so that the loss does not train the router; set "
            "model.moe.normalize_weights to false"
        )


def _cut_sentences(settings: Settings, preferences: Data) -> Iterator[str]:
    """Yields a sentence for each split that rows cut, on the main process."""
    if "preferences" in settings.store_kinds and multihost.is_main_process():
        for split in SPLITS:
            store: TokenStore = getattr(preferences, split)
            if sentence := cut_sentence(store, settings.train.seq_len):
                yield f"{split}: {sentence}"


def dry_run(
    settings: Settings,
    origins: dict[str, str],
    folder: Path,
    *,
    resume: str,
    flags: JsonObject,
    check_params: ParamCheck,
) -> None:
    """Prints settings, parameters, FLOPs and the memory estimate of a run, and writes nothing.

    Args:
        settings: All settings, not yet resolved.
        origins: The origin of each setting by its dotted key.
        folder: The run folder. It is checked as `train` does, but for its lock and the damage of
            its files, and not if it is in an object store.
        resume: As for `train`.
        flags: As for `train`.
        check_params: Checks the parameters that the flag `init_from` names.
    """
    data, program = prepare(settings)
    if not scratch.url_of(folder):
        record = _run_record(program, data, flags, {})
        run = check_folder(folder, record, MAY_CHANGE_ON_RESUME, settings.data.allow_changed)
        _check_finished_step(folder, run.finished_step, program.settings.train.steps, resume)
        source = flags.get("init_from")
        if source and run.previous_record is None:
            check_params(source, program, data.tokenizer.fingerprint)
    estimate = memory_estimate.estimate(program)
    tables = report.dry_run_tables(program, origins, estimate)
    tables.append(report.framing_table(run_framing(program.settings, data.tokenizer)))
    if settings.data.chat_template:
        tables.append(report.chat_table(settings.data.chat_template, data.tokenizer))
    report.print_tables(tables)


def preflight(settings: Settings, origins: dict[str, str], topology_spec: str) -> None:
    """Prints the tables of a dry run, compiles the step, and prints what it needs and sends.

    `topology_spec` names the machine to compile for; "" is this machine.

    Raises:
        DeviceMemoryError: if the step does not fit the machine.
    """
    target = topology.parse_topology(topology_spec) if topology_spec else topology.local_target()
    _, program = prepare(settings, target.devices)
    estimate = memory_estimate.estimate(program)
    report.print_tables(report.dry_run_tables(program, origins, estimate))
    estimated_bytes = sum(estimate.values())
    result = check.try_compile(program, target.chip)
    report.print_tables(report.compile_tables(result, program, target, estimated_bytes))
    if table := report.roofline_table(program, target, result, estimated_bytes):
        report.print_tables([table])
    check.check_fits(result, program, target, estimated_bytes)


@multihost.peer_errors()
def train(
    settings: Settings,
    folder: Path,
    make_evaluators: Callable[[TrainJob], tuple[Evaluator, Evaluator]],
    *,
    resume: str = "auto",
    read_params: ParamReader | None = None,
    flags: JsonObject | None = None,
    study: JsonObject | None = None,
) -> None:
    """Trains a run in `folder`, or resumes it, and evaluates it at the end.

    Args:
        settings: All settings, not yet resolved.
        folder: The run folder.
        make_evaluators: Returns the evaluators during the run and at its end.
        resume: "auto", "strict" (refuse a damaged checkpoint) or "extend" (train a finished run
            for more steps).
        read_params: Reads the initial parameters that the flag `init_from` names; by default they
            come from another run.
        flags: Flags of the command that run.json records.
        study: The declaration of the study that the run belongs to, for run.json.

    Raises:
        ConfigError: if the run has finished with another number of steps.
    """
    origin = {"code": provenance.code_version(), "packages": provenance.package_versions()}
    multihost.check_hosts_agree("settings and code", {"settings": as_json(settings), **origin})
    data, program = prepare(settings)
    multihost.check_hosts_agree(
        "data", {"data": data.fingerprint, "tokenizer": data.tokenizer.fingerprint}
    )
    record = _run_record(program, data, flags or {}, study or {})
    with (
        GracefulStop() as stop,
        _open_run(folder, record, settings.data.allow_changed) as run,
        PeerMonitor(run),
    ):
        if _is_finished(run, program.settings, resume):
            return
        faults = FaultInjector(settings.debug.inject_fault, attempt=run.attempt)
        strict = resume == "strict"
        log_cfg = _quiet_unless_main(settings.log)
        with (
            MetricsLogger(log_cfg, run, total_steps=settings.train.steps) as log,
            CheckpointManager(run, settings.checkpoint, faults, strict=strict) as checkpoints,
        ):
            cost = accounting.model_cost(program.settings)
            job = TrainJob(program, cost, data, run, checkpoints, log, stop, faults)
            eval_during, eval_at_end = make_evaluators(job)
            with multihost.peer_errors():  # so that the run records the error by its name
                scores = loop.train(
                    job,
                    eval_during=eval_during,
                    eval_at_end=eval_at_end,
                    load_initial=_initial_params(job, read_params, flags or {}),
                )
    if multihost.is_main_process():
        report.print_scores(scores, run.path)


def _initial_params(
    job: TrainJob, read_params: ParamReader | None, flags: JsonObject
) -> Callable[[], Trainable] | None:
    """The function that reads the initial parameters, or None to start from random ones."""
    source = flags.get("init_from") or job.run.record["flags"].get("init_from")
    if not source:
        return None
    fingerprint = job.data.tokenizer.fingerprint
    reader = read_params or params_from_run

    def read() -> Trainable:
        path = scratch.local_copy(source)
        trainable = reader(str(path), job.program, fingerprint)
        if digest := multihost.run_on_main_process(lambda: source_hash(path)):
            job.run.record["flags"] = job.run.record["flags"] | {SOURCE_HASH: digest}
        return trainable

    return read


def _open_run(folder: Path, record: JsonObject, allow_changed: bool) -> RunFolder:
    """The run folder. Process 0 opens it; the others get its record, or its error."""
    opened = []

    def open_as_main() -> JsonObject:
        run = open_run(folder, record, resumable=MAY_CHANGE_ON_RESUME, allow_changed=allow_changed)
        opened.append(run)
        shared = {key: run.record[key] for key in ("run_id", "created", "flags")}
        return shared | {"attempt": run.attempt}

    shared = multihost.run_on_main_process(open_as_main)
    _check_scratch_is_shared(folder)
    return opened[0] if opened else open_as_worker(folder, record, shared)


def _check_scratch_is_shared(folder: Path) -> None:
    """Checks that all processes see the scratch folder of a run in an object store.

    Raises:
        ConfigError: if one does not, so that it could neither write nor read checkpoints.
    """
    url = scratch.url_of(folder)
    if url and not all(multihost.all_gather_object(folder.is_dir())):
        raise ConfigError(
            f"--workdir={url}: the processes of this run do not share its scratch folder {folder}; "
            "give them a home folder in common, or use a --workdir on a shared disk"
        )


def _quiet_unless_main(cfg: LogConfig) -> LogConfig:
    """The settings of the log, without console and trackers on all processes but process 0."""
    quiet = dataclasses.replace(cfg, trackers=(), console="off")
    return cfg if multihost.is_main_process() else quiet


def _run_record(
    program: TrainProgram, data: Data, flags: JsonObject, study: JsonObject
) -> JsonObject:
    cost = accounting.model_cost(program.settings)
    meter = EnergyMeter.of_machine(program.mesh.devices.flatten().tolist())
    record = provenance.make_run_record(
        settings=as_json(program.settings),
        fingerprints={"data": data.fingerprint, "tokenizer": data.tokenizer.fingerprint},
        cost=accounting.cost_record(cost, program.settings),
        mesh=dict(program.mesh.shape),
        flags=flags,
        data={
            "decodes_back": data.decodes_back,
            "shared_text": data.shared_text,
            "framing": run_framing(program.settings, data.tokenizer),
        },
        energy=meter.description if meter else "unknown: the power of a device is not known",
    )
    return record | ({"study": study} if study else {})


def create_run_from_params(
    settings: Settings, folder: Path, source: str, read_params: ParamReader
) -> None:
    """Creates a finished run of no steps from parameters, to evaluate or to start other runs from.

    Raises:
        ConfigError: if the folder has a run.
    """
    data, program = prepare(settings)
    record = _run_record(program, data, {"init_from": source}, {})
    with open_run(folder, record) as run:
        if run.is_resumed:
            raise ConfigError(f"{folder} has a run already; use another --workdir")
        faults = FaultInjector("", attempt=1)
        with CheckpointManager(run, program.settings.checkpoint, faults) as checkpoints:
            trainable = read_params(source, program, data.tokenizer.fingerprint)
            run.record_start(0)
            checkpoints.save(0, {"trainable": trainable}, {}, wait=True)
        run.record_finish(0)


def _is_finished(run: RunFolder, settings: Settings, resume: str) -> bool:
    """Whether nothing is left to do; a finished run with damaged files is repaired by resuming it.

    Raises:
        CheckpointError: if a file is damaged, under `resume` "strict".
        ConfigError: if the run has finished with another number of steps.
    """
    steps = settings.train.steps
    finished_step = multihost.run_on_main_process(lambda: run.finished_step)
    if finished_step is None or (steps > finished_step and resume == "extend"):
        return False
    _check_finished_step(run.path, finished_step, steps, resume)
    verify = settings.checkpoint.verify
    problems = multihost.run_on_main_process(lambda: _finished_damage(run, finished_step, verify))
    if problems:
        message = f"{run.path} has finished, but {'; '.join(problems)}"
        if resume == "strict":
            raise CheckpointError(f"{message}; without --resume=strict the run repairs it")
        message += "; it resumes to write what is damaged again"
        run.log_event("file_damaged", {"step": finished_step, "message": message})
        return False
    if multihost.is_main_process():
        print(
            f"{run.path} has already finished at step {finished_step}; its scores are in "
            f"eval/{finished_step}/"
        )
    return True


def _check_finished_step(path: Path, finished_step: int | None, steps: int, resume: str) -> None:
    if finished_step in (None, steps) or (steps > (finished_step or 0) and resume == "extend"):
        return
    raise ConfigError(
        f"{path} finished at step {finished_step}, train.steps is {steps}; use --resume=extend to "
        "train it further, or another --workdir"
    )


def _finished_damage(run: RunFolder, step: int, verify: bool) -> list[str]:
    """What is damaged in a finished run; a checkpoint that was deleted is not."""
    folder = inspect_folder(run.file_path("checkpoints", str(step)), check_hashes=verify)
    problems = [f"checkpoint {step}: {folder.problem}"] if folder.problem else []
    return problems + run.find_damage()
