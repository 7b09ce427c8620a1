"""Leaves of a state by name, so that a checkpoint depends on no class and no order.

A name is the path with dots: `learner.model.blocks.0.mixer.w_qkv`. The entry that an `nnx.Variable`
adds for its value is left out; an attribute that is itself called `value` keeps its name.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from errors import CheckpointError

MOST = 10  # names in one message


def leaf_names(tree: Any) -> list[str]:
    """A name for every leaf, in the order of `jax.tree.leaves`."""
    names = []
    for path, node in jax.tree.leaves_with_path(tree, is_leaf=_is_variable):
        inner = jax.tree.leaves_with_path(node) if _is_variable(node) else [((), node)]
        for below, _ in inner:
            names.append(jax.tree_util.keystr((*path, *below[1:]), simple=True, separator="."))
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"leaves with the same name: {', '.join(twice[:MOST])}")
    return names


def named_leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves by name, `prefix.` before each if there is one."""
    names = leaf_names(tree)
    names = [f"{prefix}.{name}" if prefix else name for name in names]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def layout(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each leaf, as JSON."""
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in leaves.items()
    }


def check_layout(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """One CheckpointError that names every leaf by which `saved` and `wanted` (layouts) differ."""
    both = [name for name in wanted if name in saved]
    groups = {
        "not in it": [name for name in wanted if name not in saved],
        "only in it": [name for name in saved if name not in wanted],
        "of another shape or dtype": [
            f"{name} {_text(saved[name])} there, {_text(wanted[name])} here"
            for name in both
            if saved[name] != wanted[name]
        ],
    }
    found = [f"{len(names)} {what}: {_some(names)}" for what, names in groups.items() if names]
    if found:
        raise CheckpointError(
            f"{where} does not fit this run: {'; '.join(found)}. Use the settings it was saved "
            "with, another --workdir, or --init_from for its parameters alone"
        )


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _some(names: list[str]) -> str:
    more = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {more} more" if more > 0 else "")


def _text(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']}[{','.join(map(str, entry['shape']))}]"
