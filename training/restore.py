"""Reading checkpoints, strictly and without changing them: find, check, restore all or a part.

A checkpoint is good if its manifest and every file are as they were written; orbax itself restores
flipped bits, other dtypes and a stray folder as the newest step without a word.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from errors import CheckpointError
from training.leaves import check_layout, layout, named_leaves
from training.manifest import Found, look

STATE = "state"  # the folder of arrays in that of a step


class Search(NamedTuple):
    """The newest good step, and what was passed over on the way to it."""

    step: int | None
    damaged: list[Found]
    tainted: list[Found]


def steps(root: Path) -> list[int]:
    """Steps that have a folder, good or not, oldest first; other names are strays."""
    if not root.is_dir():
        return []
    names = [entry.name for entry in root.iterdir() if re.fullmatch(r"0|[1-9]\d*", entry.name)]
    return sorted(map(int, names))


def search(root: Path, *, hashes: bool = True) -> Search:
    """Walk from the newest step (by number, never by time) down to one that is good."""
    damaged: list[Found] = []
    tainted: list[Found] = []
    for step in reversed(steps(root)):
        found = look(root / str(step), hashes=hashes)
        if found.problem:
            damaged.append(found)
        elif found.content and found.content["step"] != step:
            damaged.append(found._replace(problem=f"holds step {found.content['step']}"))
        elif found.content and found.content.get("tainted"):
            tainted.append(found)
        elif found.content:
            return Search(step, damaged, tainted)
    return Search(None, damaged, tainted)


def newest(root: Path, *, hashes: bool = True) -> int:
    """The newest good step, of a run that is only read (`--init_from`, evaluation)."""
    found = search(root, hashes=hashes)
    if found.step is None:
        raise CheckpointError(nothing_good(root, found))
    return found.step


def nothing_good(root: Path, found: Search) -> str:
    problems = [f"{item.path.name}: {item.problem}" for item in found.damaged]
    problems += [f"{item.path.name}: {taint(item)}" for item in found.tainted]
    what = "; ".join(problems) if problems else "there is none"
    return f"no good checkpoint in {root} ({what}); restore one, or use another --workdir"


def taint(found: Found) -> str:
    names = (found.content or {}).get("tainted") or []
    return f"{len(names)} parameters are not finite, as {names[0]}" if names else ""


def restore(
    root: Path, step: int, abstract: Any, *, run_id: str | None = None, hashes: bool = True
) -> Any:
    """All of a checkpoint, as the tree `abstract`: ShapeDtypeStructs with a sharding each.

    Names, shapes and dtypes must agree; shardings are free. `run_id` refuses another run's.
    """
    content = read_manifest(root, step, hashes=hashes)
    if run_id is not None and content["run_id"] != run_id:
        raise CheckpointError(
            f"{root / str(step)} is of run {content['run_id']}, not of this run ({run_id}); use "
            "another --workdir, or --init_from for its parameters"
        )
    wanted = named_leaves(abstract)
    check_layout(content["leaves"], layout(wanted), str(root / str(step)))
    return jax.tree.unflatten(jax.tree.structure(abstract), _read(root, step, wanted))


def restore_subset(
    root: Path, step: int, abstract: Any, prefix: str, *, hashes: bool = True
) -> Any:
    """The leaves below `prefix` ("learner.model"), as the tree `abstract`; the rest is not read."""
    saved = read_manifest(root, step, hashes=hashes)["leaves"]
    below = {name: entry for name, entry in saved.items() if name.startswith(f"{prefix}.")}
    wanted = named_leaves(abstract, prefix)
    check_layout(below, layout(wanted), f"{root / str(step)} ({prefix})")
    return jax.tree.unflatten(jax.tree.structure(abstract), _read(root, step, wanted))


def read_meta(root: Path, step: int, require: Sequence[str] = ()) -> dict[str, Any]:
    """What was saved beside the arrays; an item of `require` that is missing is an error."""
    meta = read_manifest(root, step, hashes=False)["meta"]
    missing = [name for name in require if name not in meta]
    if missing:
        raise CheckpointError(
            f"{root / str(step)} lacks {', '.join(missing)}, so that this run cannot go on from "
            "it; --init_from takes its parameters alone"
        )
    return meta


def read_manifest(root: Path, step: int, *, hashes: bool) -> dict[str, Any]:
    """The manifest of a step that is as it was saved, else a CheckpointError."""
    found = look(root / str(step), hashes=hashes)
    if found.content is None or found.problem:
        problem = found.problem or "there is no checkpoint"
        raise CheckpointError(f"{root / str(step)}: {problem}; use another step or a copy")
    return found.content


def _read(root: Path, step: int, wanted: Mapping[str, Any]) -> list[jax.Array]:
    """Arrays in the order of `wanted`, placed as it says."""
    for name, leaf in wanted.items():
        if leaf.sharding is None:
            raise ValueError(f"{name} has no sharding; orbax would choose one")
    items = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in wanted.items()
    }
    arguments = ocp.checkpoint_utils.construct_restore_args(items)
    request = ocp.args.PyTreeRestore(item=items, restore_args=arguments, partial_restore=True)
    folder = root / str(step) / STATE
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = reader.restore(folder.absolute(), args=request)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    for name, leaf in items.items():
        if (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype):
            raise CheckpointError(f"{folder} has {name} in another form than its manifest says")
    return [found[name] for name in items]
