"""Names the leaves of a state by path, so that a checkpoint depends on no class and no order.

A name is the path with dots: `trainable.model.blocks.0.mixer.w_qkv`. The path entry that an
`nnx.Variable` adds for its value is omitted; an attribute that is itself called `value` keeps its
name.
"""

from collections.abc import Mapping
from typing import TypedDict

import jax
from flax import nnx
from jaxtyping import PyTree

from errors import CheckpointError

MAX_NAMES = 10  # names in one message


class LeafEntry(TypedDict):
    """The shape and the dtype of a leaf, as a manifest has them."""

    shape: list[int]
    dtype: str


def leaf_names(tree: PyTree) -> list[str]:
    """Returns a name for every leaf, in the order of `jax.tree.leaves`.

    Raises:
        ValueError: if two leaves have the same name.
    """
    names = []
    for path, node in jax.tree.leaves_with_path(tree, is_leaf=_is_variable):
        inner = jax.tree.leaves_with_path(node) if _is_variable(node) else [((), node)]
        for below, _ in inner:
            names.append(jax.tree_util.keystr((*path, *below[1:]), simple=True, separator="."))
    if len(set(names)) < len(names):
        duplicates = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"leaves with the same name: {', '.join(duplicates[:MAX_NAMES])}")
    return names


def named_leaves(tree: PyTree, prefix: str = "") -> dict[str, jax.Array]:
    """Returns the leaves by name; a non-empty `prefix` is put before each name with a dot."""
    names = leaf_names(tree)
    names = [f"{prefix}.{name}" if prefix else name for name in names]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def shapes_and_dtypes(leaves: Mapping[str, jax.Array]) -> dict[str, LeafEntry]:
    """Returns the shape and dtype of each leaf in a form that JSON can hold."""
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in leaves.items()
    }


def check_shapes_and_dtypes(
    saved: Mapping[str, LeafEntry], expected: Mapping[str, LeafEntry], source: str
) -> None:
    """Compares the leaves of a checkpoint, `source`, with those that a run expects.

    Raises:
        CheckpointError: if names, shapes or dtypes differ; the message names every such leaf.
    """
    common = [name for name in expected if name in saved]
    groups = {
        "not in it": [name for name in expected if name not in saved],
        "only in it": [name for name in saved if name not in expected],
        "of another shape or dtype": [
            f"{name} {_format_shape_and_dtype(saved[name])} "
            f"(expected {_format_shape_and_dtype(expected[name])})"
            for name in common
            if saved[name] != expected[name]
        ],
    }
    problems = [
        f"{len(names)} {text}: {_first_few(names)}" for text, names in groups.items() if names
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit this run: {'; '.join(problems)}. Use the settings it was saved "
            "with, another --workdir, or --init_from for its parameters alone"
        )


def _is_variable(node: object) -> bool:
    return isinstance(node, nnx.Variable)


def _first_few(names: list[str]) -> str:
    excess = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {excess} more" if excess > 0 else "")


def _format_shape_and_dtype(entry: LeafEntry) -> str:
    return f"{entry['dtype']}[{','.join(map(str, entry['shape']))}]"
