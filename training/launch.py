"""From settings to a run: data, mesh, program, run folder, loop; or only a dry run's report."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from data import Data, open_data
from errors import CheckpointError, ConfigError
from objectives import Learner
from training import distributed, environment, loop, memory, report, restore, targets
from training import mesh as meshes
from training import preflight as preflights
from training.checkpoint import Checkpoints
from training.faults import Faults
from training.files import read_json
from training.flags import as_json
from training.leaves import layout, named_leaves
from training.log import Log, LogConfig
from training.loop import Job, Judge
from training.program import Program, program
from training.pulse import Pulse
from training.run import RunFolder, follow, open_run
from training.settings import Settings, resolved
from training.stop import GracefulStop

# Settings that may change between attempts at the same run.
RESUMABLE = (
    "train.steps",
    "train.compile_cache",
    "train.patience",
    "mesh.*",
    "eval.*",
    "checkpoint.*",
    "log.*",
    "debug.*",
    "data.cache",
)


# (what --init_from says, the program, the tokenizer's fingerprint) -> what to begin with.
Reader = Callable[[str, Program, str], Learner]


def prepared(settings: Settings, devices: list[jax.Device] | None = None) -> tuple[Data, Program]:
    """Data and program, everything checked; nothing is compiled yet."""
    cache = settings.train.compile_cache
    if cache and cache != jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", cache)
        compilation_cache.reset_cache()  # else the first folder of a process is its last
    data = open_data(settings.data, settings.reads)
    settings = resolved(settings, data.tokenizer.vocab)
    return data, program(settings, meshes.build(settings.mesh, devices))


def dry_run(settings: Settings, origins: dict[str, str]) -> None:
    """Print what the run would be."""
    _, made = prepared(settings)
    report.show(report.tables(made, origins, memory.estimate(made)))


def preflight(settings: Settings, origins: dict[str, str], topology: str) -> None:
    """What a dry run prints, then what the compiler says for `topology` ("": this machine)."""
    where = targets.target(topology) if topology else targets.here()
    _, made = prepared(settings, where.devices)
    report.show(report.tables(made, origins, memory.estimate(made)))
    preflights.check(made, where)


@distributed.companions()
def train(
    settings: Settings,
    folder: Path,
    judges_of: Callable[[Job], tuple[Judge, Judge]],
    *,
    resume: str = "auto",
    parameters: Reader | None = None,
    flags: dict[str, Any] | None = None,
    study: dict[str, Any] | None = None,
) -> None:
    """Train in `folder`, or go on there; then judge. `flags` are those of the command that a run
    is known by; `parameters` reads what `init_from` among them names, by default as another run;
    `study` is what a comparison declared.
    """
    here = {"code": environment.code_version(), "packages": environment.packages()}
    distributed.agree("what they run", {"settings": as_json(settings), **here})
    data, made = prepared(settings)
    distributed.agree("data", {"data": data.fingerprint, "tokenizer": data.tokenizer.fingerprint})
    record = _record(made, data, flags or {}, study or {})
    with (
        GracefulStop() as stop,
        _opened(folder, record, settings.data.allow_changed) as run,
        Pulse(run),
    ):
        if _is_finished(run, made.settings.train.steps, resume):
            return
        faults = Faults(settings.debug.fault, attempt=run.attempt)
        with (
            Log(_heard(settings.log), run, total=settings.train.steps) as log,
            Checkpoints(run, settings.checkpoint, faults, strict=resume == "strict") as checkpoints,
        ):
            bill = report.priced(made.settings)
            job = Job(made, bill, data, run, checkpoints, log, stop, faults)
            during, after = judges_of(job)
            read, fingerprint = parameters or of_run, data.tokenizer.fingerprint
            source = (flags or {}).get("init_from") or run.record["flags"].get("init_from")
            start = functools.partial(read, source, made, fingerprint) if source else None
            with distributed.companions():  # so that the run records it by its name
                scores = loop.train(job, during=during, after=after, initial=start)
    if distributed.first():
        report.tell(scores, run.path)


def _opened(folder: Path, record: dict[str, Any], allow_changed: bool) -> RunFolder:
    """The run folder, opened by process 0; the others learn what it found, or why it failed."""
    opened = []

    def lead() -> dict[str, Any]:
        run = open_run(folder, record, resumable=RESUMABLE, allow_changed=allow_changed)
        opened.append(run)
        told = {key: run.record[key] for key in ("run_id", "created", "flags")}
        return told | {"attempt": run.attempt}

    led = distributed.decided(lead)
    return opened[0] if opened else follow(folder, record, led)


def _heard(cfg: LogConfig) -> LogConfig:
    """Only process 0 speaks."""
    quiet = dataclasses.replace(cfg, trackers=(), console="off")
    return cfg if distributed.first() else quiet


def _record(
    made: Program, data: Data, flags: dict[str, Any], study: dict[str, Any]
) -> dict[str, Any]:
    bill = report.priced(made.settings)
    record = environment.describe(
        settings=as_json(made.settings),
        fingerprints={"data": data.fingerprint, "tokenizer": data.tokenizer.fingerprint},
        cost=report.summary(bill, made.settings),
        mesh=dict(made.mesh.shape),
        flags=flags,
    )
    return record | ({"study": study} if study else {})


def adopt(settings: Settings, folder: Path, source: str, parameters: Reader) -> None:
    """Make a finished run of no steps around parameters from elsewhere, to judge or begin with."""
    data, made = prepared(settings)
    record = _record(made, data, {"init_from": source}, {})
    with open_run(folder, record) as run:
        if run.resumes:
            raise ConfigError(f"{folder} has a run already; use another --workdir")
        with Checkpoints(run, made.settings.checkpoint, Faults("", attempt=1)) as checkpoints:
            learner = parameters(source, made, data.tokenizer.fingerprint)
            run.begin(0)
            checkpoints.save(0, {"learner": learner}, {}, wait=True)
        run.finish(0)


def of_run(source: str, made: Program, tokenizer: str) -> Learner:
    """The model of the newest good checkpoint of another run, laid out for this one; the weights of
    its objective too if both runs have the same, else they are None: to begin anew."""
    root, own = Path(source) / "checkpoints", made.state.learner
    before = read_json(Path(source) / "run.json") or {}
    known = before.get("fingerprints", {}).get("tokenizer", tokenizer)
    if known != tokenizer:
        raise CheckpointError(
            f"--init_from={source} was trained with tokenizer {known[:12]}, this run has "
            f"{tokenizer[:12]}; set data.tokenizer to the tokenizer.json of its token store"
        )
    step = restore.newest(root)
    model = restore.restore_subset(root, step, own.model, "learner.model")
    saved = restore.read_manifest(root, step, hashes=False)["leaves"]
    theirs = {name: leaf for name, leaf in saved.items() if name.startswith("learner.head.")}
    if theirs and theirs == layout(named_leaves(own.head, "learner.head")):
        return Learner(model, restore.restore_subset(root, step, own.head, "learner.head"))
    return Learner(model)


def _is_finished(run: RunFolder, steps: int, resume: str) -> bool:
    done = distributed.decided(lambda: run.finished_at)
    if done is None:
        return False
    if steps > done and resume == "extend":
        return False
    if steps != done:
        raise ConfigError(
            f"{run.path} finished at step {done}, train.steps is {steps}; use --resume=extend to "
            "train it further, or another --workdir"
        )
    if distributed.first():
        print(f"{run.path} already finished at step {done}; its scores are in eval/{done}/")
    return True
