"""Loads a trained run for evaluation from its run folder, and executes no code from that folder."""

import dataclasses
from pathlib import Path

from data.open_stores import open_data
from errors import CheckpointError
from eval.task import EvalContext
from settings.changes import with_changes
from settings.json_types import JsonObject
from settings.tree import from_json
from storage import scratch
from training import mesh as meshes
from training.checkpoint import restore
from training.program import make_program
from training.run.atomic_io import read_json
from training.run.console import LOGGER
from training.run.folder import RunFolder
from training.run.resume_check import check_fingerprints, check_record
from training.settings import Settings, resolve
from training.text_reading import FRAMING_LABELS, run_framing


def load_run(
    path: Path, step: int | None = None, *, reads_splits: bool = False
) -> tuple[EvalContext, RunFolder, int]:
    """Returns the evaluation context, the run folder and the step of a saved run.

    The parameters are laid out for the devices of this machine, whatever mesh the run was trained
    on.

    Args:
        path: the run folder.
        step: the step of the checkpoint; None stands for the newest that is not damaged.
        reads_splits: whether the splits of the run's data will be read, so that they must be those
            of its training; the tokenizer must be in any case.

    Raises:
        CheckpointError: if `path` has no run.json with settings.
        DataError: if the tokenizer or the data are not those of the training.
    """
    path = scratch.local_copy(path)
    record = read_json(path / "run.json")
    if record is None or "settings" not in record:
        raise CheckpointError(
            f"{path} is not a run folder: it has no run.json; set --run to a folder that train.py "
            "wrote"
        )
    check_record(path, record)
    settings = recorded_settings(record["settings"])
    data = open_data(settings.data, settings.store_kinds)
    read = {"tokenizer": data.tokenizer.fingerprint}
    check_fingerprints(path, record, read | ({"data": data.fingerprint} if reads_splits else {}))
    pairs = data.select("preferences").record_counts
    settings = resolve(settings, data.tokenizer.vocab_size, pairs)
    _warn_of_another_frame(path, record, run_framing(settings, data.tokenizer))
    mesh = meshes.make_mesh(meshes.MeshConfig())
    # The batch size of the run may not divide over the devices of this machine.
    divisor = mesh.size * settings.train.grad_accum_steps
    batch_size = -(-settings.train.batch_size // divisor) * divisor
    train = dataclasses.replace(settings.train, batch_size=batch_size)
    local_settings = dataclasses.replace(settings, train=train, mesh=meshes.MeshConfig())
    program = make_program(local_settings, mesh)
    root = path / "checkpoints"
    step = restore.newest_step(root) if step is None else step
    state = program.abstract_state
    trainable = restore.restore_subset(root, step, state.trainable, "trainable")
    banks = restore.restore_subset(root, step, state.banks, "banks") if state.banks else {}
    ctx = EvalContext(trainable, mesh, settings, program.objective, data, banks)
    return ctx, RunFolder(path), step


def _warn_of_another_frame(path: Path, record: JsonObject, framing: dict[str, str]) -> None:
    """Says where the files of the tokenizer frame texts in another way than run.json records."""
    recorded = record.get("data", {}).get("framing") or {}
    for name in sorted(n for n in recorded if recorded[n] != framing.get(n)):
        LOGGER.warning(
            "%s/run.json records %s: %s; the tokenizer's files now say %s, which is followed",
            *(path, FRAMING_LABELS.get(name, name), recorded[name], framing.get(name, "nothing")),
        )


def recorded_settings(tree: JsonObject) -> Settings:
    """Returns the settings of a run.json; a version without eval.limit evaluated whole splits."""
    settings = from_json(Settings, tree)
    if "limit" in tree.get("eval", {}):
        return settings
    return with_changes(settings, {"eval.limit": 0})
