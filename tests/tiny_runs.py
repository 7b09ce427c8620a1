"""Runs of the training command in this process: a tiny text, tiny flags, and what a run leaves.

Most of a run's time is compilation, and programs are compiled once per process (`conftest.py`). The
fixture `finished_run` is trained once per session of tests: copy its folder before you change it.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import train
from training.checkpoint import restore
from training.run.cli_errors import run_command
from training.run.folder import RunFolder

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sees"]
STEPS = 6
SETTINGS: dict[str, Any] = {
    "model.width": 16,
    "model.depth": 1,
    "train.batch_size": 8,
    "train.seq_len": 16,
    "train.steps": STEPS,
    "checkpoint.every": 2,
    "log.every": 1,
    "eval.batch_size": 8,
    "eval.sample_tokens": 4,
}


def write_text(folder: Path) -> None:
    """Writes `text.txt` with 60 documents of 40 words."""
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(WORDS, 40)) for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(documents))


def flags(settings: dict[str, Any], workdir: Path, *more: str) -> list[str]:
    """Returns the flags of a tiny run with changed settings; those in `more` come last."""
    named = SETTINGS | settings
    return [
        *(f"--config.{key}={value}" for key, value in named.items()),
        f"--workdir={workdir}",
        *more,
    ]


def text_flags(text: Path, workdir: Path, *more: str) -> list[str]:
    """Returns the flags of a tiny run on the text of `write_text` in the folder `text`."""
    settings = {
        "data.source": "text",
        "data.path": text / "text.txt",
        "data.document_separator": "\\n\\n",
        "data.cache": text / "cache",
    }
    return flags(settings, workdir, *more)


def run(*argv: str) -> int:
    """Runs train.py in this process and returns its exit code."""
    return run_command(train.run, list(argv))


def saved_leaves(workdir: Path, step: int, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns every leaf of a checkpoint whose name begins with `prefix`, bit for bit."""
    root = workdir / "checkpoints"
    leaves = restore.read_manifest(root, step, check_hashes=True)["leaves"]
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"], sharding=place)
        for name, leaf in leaves.items()
        if name.startswith(prefix)
    }
    arrays = restore._read_arrays(root, step, shapes)
    return {name: np.asarray(a) for name, a in zip(shapes, arrays, strict=True)}


def assert_same_bits(first: Path, second: Path, step: int) -> None:
    """Asserts that two runs have equal checkpoints at a step."""
    a, b = saved_leaves(first, step), saved_leaves(second, step)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def event_names(workdir: Path) -> list[str]:
    """Returns the events of a run in their order."""
    return [event["event"] for event in RunFolder(workdir).read_events()]
