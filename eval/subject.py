"""What is to be judged, from a run folder alone: nothing found there is executed."""

import dataclasses
from pathlib import Path

from data import open_data
from errors import CheckpointError
from eval.task import Subject
from training import mesh as meshes
from training import restore
from training.files import read_json
from training.flags import from_json
from training.program import program
from training.run import RunFolder
from training.settings import Settings, resolved


def from_run(path: Path, step: int | None = None) -> tuple[Subject, RunFolder, int]:
    """The learner that a run saved at `step` (the newest good one), on the devices of this machine.

    The mesh of the run is not asked for: parameters are laid out for what is here.
    """
    record = read_json(path / "run.json")
    if record is None or "settings" not in record:
        raise CheckpointError(f"{path} is no run folder: it has no run.json; give --run=DIR of one")
    settings = from_json(Settings, record["settings"])
    data = open_data(settings.data, settings.reads)
    settings = resolved(settings, data.tokenizer.vocab)
    mesh = meshes.build(meshes.MeshConfig())
    ways = mesh.size * settings.train.accumulate  # the run's batch may not divide over these
    batch = -(-settings.train.batch // ways) * ways
    train = dataclasses.replace(settings.train, batch=batch)
    made = program(dataclasses.replace(settings, train=train, mesh=meshes.MeshConfig()), mesh)
    root = path / "checkpoints"
    found = restore.newest(root) if step is None else step
    learner = restore.restore_subset(root, found, made.state.learner, "learner")
    return Subject(learner, mesh, settings, made.objective, data), RunFolder(path), found
