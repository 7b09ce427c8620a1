"""Communication between devices that hold parts of one row, along the mesh axis "context".

All functions but `context_axis` run inside `map_shards`, on a device's part of the rows. Attention
gathers keys and values (as Llama 3 does, arXiv:2407.21783, section 3.3.2), or passes them around
(`ops/attention/ring.py`). A recurrence that is linear in its state runs on all parts at once from a
state of 0, and the effect of the incoming state is added afterwards.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.implementation import auto_axes

CONTEXT_AXIS = "context"
Tree = TypeVar("Tree")  # a pytree of arrays


def context_axis(*lengths: int) -> str | None:
    """Returns CONTEXT_AXIS if the current mesh splits rows of these lengths along it, else None."""
    size = auto_axes().get(CONTEXT_AXIS, 1)
    return CONTEXT_AXIS if size > 1 and all(n and n % size == 0 for n in lengths) else None


def all_gather_tokens(tree: Tree) -> Tree:
    """Returns each array [B T ..] of the tree with the tokens of all devices, in order."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, CONTEXT_AXIS, axis=1, tiled=True), tree)


def left_halo(x: Float[Array, "B T *inner"], count: int, first: Array) -> Array:
    """Returns the last `count` tokens of the previous device, or `first` on the first device."""
    n = jax.lax.axis_size(CONTEXT_AXIS)
    ends = jax.lax.all_gather(x[:, x.shape[1] - count :], CONTEXT_AXIS)  # [n B count ..], small
    ends = jnp.concatenate([first[None].astype(x.dtype), ends[: n - 1]])
    return ends[jax.lax.axis_index(CONTEXT_AXIS)]


def broadcast_from_last(tree: Tree) -> Tree:
    """Returns the last device's arrays on all devices."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, CONTEXT_AXIS)[-1], tree)


def propagate_state(
    initial_state: Array,
    local_state: Array,
    decay: Array,
    compose: Callable[[Array, Array], Array] = jnp.multiply,
) -> tuple[Array, Array]:
    """Returns the state before this device's tokens and the state after the last device's tokens.

    Args:
        initial_state: State before the first device's tokens.
        local_state: State after this device's tokens, if they begin with a state of 0.
        decay: Factor by which this device's tokens change an incoming state.
        compose: `compose(decay, state)` applies the factor to a state; it is linear in the state.
    """
    local_states, decays = (jax.lax.all_gather(x, CONTEXT_AXIS) for x in (local_state, decay))
    states = [initial_state]
    for i in range(jax.lax.axis_size(CONTEXT_AXIS)):
        states.append(compose(decays[i], states[-1]) + local_states[i])
    return jnp.stack(states[:-1])[jax.lax.axis_index(CONTEXT_AXIS)], states[-1]
