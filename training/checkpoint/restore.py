"""Reads checkpoints strictly and without changing them: find one, check it, restore all or a part.

A checkpoint is valid if its manifest and every file are as they were written. Orbax itself gives no
error for flipped bits, for other dtypes, or for a foreign folder with the highest step number.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax

from errors import CheckpointError, DiskError
from settings.json_types import JsonObject
from training.checkpoint.manifest import Manifest, StepFolder, inspect_folder
from training.checkpoint.param_names import (
    LeafEntry,
    check_shapes_and_dtypes,
    named_leaves,
    shapes_and_dtypes,
)
from training.run.atomic_io import read_json

T = TypeVar("T")
LOGGER = logging.getLogger("isoflop")
STATE_FOLDER = "state"  # name of the folder with the arrays, inside a step's folder


class CheckpointSearch(NamedTuple):
    """The newest valid step, and the newer checkpoints that the search rejected."""

    step: int | None
    damaged: list[StepFolder]
    nonfinite: list[StepFolder]


def list_steps(root: Path) -> list[int]:
    """Returns the steps that have a folder, valid or not, oldest first; other names are ignored."""
    if not root.is_dir():
        return []
    names = [entry.name for entry in root.iterdir() if re.fullmatch(r"0|[1-9][0-9]*", entry.name)]
    return sorted(map(int, names))


def find_checkpoint(root: Path, *, check_hashes: bool = True) -> CheckpointSearch:
    """Searches from the newest step (by number, never by time) down to a valid one."""
    damaged: list[StepFolder] = []
    nonfinite: list[StepFolder] = []
    for step in reversed(list_steps(root)):
        folder = inspect_folder(root / str(step), check_hashes=check_hashes)
        if folder.problem:
            damaged.append(folder)
        elif folder.content and folder.content["step"] != step:
            damaged.append(folder._replace(problem=f"holds step {folder.content['step']}"))
        elif folder.content and folder.content.get("nonfinite_params"):
            nonfinite.append(folder)
        elif folder.content:
            return CheckpointSearch(step, damaged, nonfinite)
    return CheckpointSearch(None, damaged, nonfinite)


def newest_step(root: Path, *, check_hashes: bool = True) -> int:
    """Returns the newest valid step of a run that is only read (`--init_from`, evaluation).

    A newer checkpoint that is damaged, not finite or missing is a warning, as in training.

    Raises:
        CheckpointError: if there is no valid checkpoint.
    """
    search = find_checkpoint(root, check_hashes=check_hashes)
    if search.step is None:
        raise CheckpointError(no_valid_checkpoint_message(root, search))
    problems = rejections(search)
    finished = _finished_step(root.parent)
    if not problems and finished is not None and finished > search.step:
        problems = [f"{finished}: it is missing, although the run finished at this step"]
    for problem in problems:
        LOGGER.warning(
            "checkpoint %s; using step %s of %s instead: its scores and weights are not those of "
            "the end of the run (the command that trained it repairs it)",
            *(problem, search.step, root.parent),
        )
    return search.step


def rejections(search: CheckpointSearch) -> list[str]:
    """Returns the step and the problem of each checkpoint that the search rejected."""
    return [
        *(f"{item.path.name}: {item.problem}" for item in search.damaged),
        *(f"{item.path.name}: {nonfinite_message(item)}" for item in search.nonfinite),
    ]


def _finished_step(run_folder: Path) -> int | None:
    """Returns the step at which the run finished by its status; None if it is not known."""
    try:
        status = read_json(run_folder / "status.json") or {}
    except (CheckpointError, DiskError):
        return None
    step = status.get("step")
    return step if status.get("state") == "finished" and isinstance(step, int) else None


def no_valid_checkpoint_message(root: Path, search: CheckpointSearch) -> str:
    """Returns the message that lists why each checkpoint below `root` is not valid."""
    reasons = "; ".join(rejections(search)) or "there is none"
    return f"no valid checkpoint in {root} ({reasons}); restore one, or use another --workdir"


def nonfinite_message(folder: StepFolder) -> str:
    """Returns the number of non-finite parameters and the first name; "" if all are finite."""
    names = folder.content.get("nonfinite_params") or [] if folder.content else []
    return f"{len(names)} parameters are not finite, for example {names[0]}" if names else ""


def restore(
    root: Path, step: int, abstract: T, *, run_id: str | None = None, check_hashes: bool = True
) -> T:
    """Returns a whole checkpoint as the tree `abstract`, which holds ShapeDtypeStructs.

    Names, shapes and dtypes must agree. Every leaf needs a sharding, which may differ from the
    sharding under which it was saved.

    Raises:
        CheckpointError: if the checkpoint is damaged, belongs to another run than `run_id`, or its
            leaves differ from `abstract`.
    """
    content = read_manifest(root, step, check_hashes=check_hashes)
    if run_id is not None and content["run_id"] != run_id:
        raise CheckpointError(
            f"{root / str(step)} is of run {content['run_id']}, not of this run ({run_id}); use "
            "another --workdir, or --init_from for its parameters"
        )
    leaves = named_leaves(abstract)
    check_shapes_and_dtypes(content["leaves"], shapes_and_dtypes(leaves), str(root / str(step)))
    return jax.tree.unflatten(jax.tree.structure(abstract), _read_arrays(root, step, leaves))


def check_subset(
    root: Path, step: int, abstract: object, prefix: str, *, check_hashes: bool = True
) -> dict[str, jax.Array]:
    """Checks that the leaves below `prefix` are those of `abstract`, and returns these by name."""
    saved = read_manifest(root, step, check_hashes=check_hashes)["leaves"]
    below = {name: entry for name, entry in saved.items() if name.startswith(f"{prefix}.")}
    leaves = named_leaves(abstract, prefix)
    check_shapes_and_dtypes(below, shapes_and_dtypes(leaves), f"{root / str(step)} ({prefix})")
    return leaves


def restore_subset(
    root: Path, step: int, abstract: T, prefix: str, *, check_hashes: bool = True
) -> T:
    """Returns the leaves below `prefix` ("trainable.model") as the tree `abstract`.

    Other leaves are not read.
    """
    leaves = check_subset(root, step, abstract, prefix, check_hashes=check_hashes)
    return jax.tree.unflatten(jax.tree.structure(abstract), _read_arrays(root, step, leaves))


def find_unreadable_leaf(folder: Path, leaves: Mapping[str, LeafEntry]) -> str:
    """Returns the first leaf that cannot be opened in a step's folder and why; "" if all can.

    The bytes of a checkpoint may be intact although its index lists no array: orbax merges the
    files of all processes at the end of a save, and skips those that it does not find.
    """
    import tensorstore  # a third of a second, which only a save needs

    store = {"driver": "file", "path": f"{(folder / STATE_FOLDER).absolute()}/"}
    opened = {
        name: tensorstore.open(
            {
                "driver": "zarr",
                "kvstore": {"driver": "ocdbt", "base": store, "path": f"{name}/"},
            },
            open=True,
        )
        for name in leaves
    }
    for name, future in opened.items():
        try:
            array = future.result()
        except ValueError as error:
            return f"{name} cannot be opened: {' '.join(str(error).split())[:200]}"
        actual = {"shape": list(array.shape), "dtype": array.dtype.name}
        if actual != leaves[name]:
            return f"{name} is {actual}, not {leaves[name]}"
    return ""


def read_meta(root: Path, step: int, required_keys: Sequence[str] = ()) -> JsonObject:
    """Returns the metadata that was saved with the arrays of `step`.

    Raises:
        CheckpointError: if a key in `required_keys` is missing.
    """
    meta = read_manifest(root, step, check_hashes=False)["meta"]
    missing = [name for name in required_keys if name not in meta]
    if missing:
        raise CheckpointError(
            f"{root / str(step)} lacks {', '.join(missing)}, so this run cannot resume from it; "
            "--init_from reads its parameters alone"
        )
    return meta


def read_manifest(root: Path, step: int, *, check_hashes: bool) -> Manifest:
    """Returns the manifest of an undamaged step.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged.
    """
    folder = inspect_folder(root / str(step), check_hashes=check_hashes)
    if folder.content is None or folder.problem:
        problem = folder.problem or "there is no checkpoint"
        raise CheckpointError(f"{root / str(step)}: {problem}; use another step or a copy")
    return folder.content


def _read_arrays(root: Path, step: int, abstract: Mapping[str, jax.Array]) -> list[jax.Array]:
    """Returns the arrays in the order of `abstract`, with the shardings of `abstract`.

    Raises:
        CheckpointError: if orbax cannot read them, or they differ from the manifest.
        ValueError: if a leaf of `abstract` has no sharding.
    """
    import orbax.checkpoint as ocp  # half a second, which only a restore needs

    for name, leaf in abstract.items():
        if leaf.sharding is None:
            raise ValueError(f"{name} has no sharding; orbax would choose one")
    items = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in abstract.items()
    }
    arguments = ocp.checkpoint_utils.construct_restore_args(items)
    request = ocp.args.PyTreeRestore(item=items, restore_args=arguments, partial_restore=True)
    folder = root / str(step) / STATE_FOLDER
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            arrays = reader.restore(folder.absolute(), args=request)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}; use another step") from error
    for name, item in items.items():
        if (arrays[name].shape, arrays[name].dtype) != (item.shape, item.dtype):
            raise CheckpointError(
                f"{folder}: shape or dtype of {name} differs from the manifest; use another step"
            )
    return [arrays[name] for name in items]
