"""The decoding state of a stack: a state for each of its blocks."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from arch.block import BlockState
from arch.mixers.kv_cache import KVCache

BlockStates = Sequence[BlockState | None]  # In the order of the blocks; None outside decoding.


class StackState(NamedTuple):
    """The decoding state, one block state per block; `blocks` have a leading axis of repeats."""

    first: BlockStates
    blocks: BlockStates
    last: BlockStates


def check_state(state: StackState, template: StackState, num_tokens: int) -> None:
    """Refuses a state of another model or batch size, which could broadcast, or a full one.

    Args:
        state: the state that a caller gives.
        template: the shapes of a state of this model for the rows of the call.
        num_tokens: the number of tokens of the call in each row.

    Raises:
        ValueError: if the structure or the number of rows differs, or if tokens do not fit.
    """
    expected, actual = _leaves_by_block(template), _leaves_by_block(state)
    if [(path, leaf.ndim) for path, leaf in expected] != [(path, x.ndim) for path, x in actual]:
        raise ValueError(
            "the state is of another architecture; make it by "
            "init_state(batch_size, max_length) of this model"
        )
    for (path, a), (_, b) in zip(expected, actual, strict=True):
        axis = int(".blocks" in path)
        if a.ndim > axis and a.shape[axis] != b.shape[axis]:
            raise ValueError(
                f"the state is of {b.shape[axis]} rows, there are {a.shape[axis]}; "
                f"make it by init_state({a.shape[axis]}, max_length)"
            )
    for part in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, KVCache)):
        if isinstance(part, KVCache):
            part.check_room(num_tokens)


def _leaves_by_block(tree: StackState) -> list[tuple[str, PyTree]]:
    """Returns the arrays of a state, each with the group and the number of its block."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path[:2]), leaf) for path, leaf in leaves]
