"""Rows whose tokens lie on several devices, along the mesh axis "context": what crosses it.

Everything here runs inside `by_device`, on a device's own piece of the rows. Attention gathers keys
and values (as Llama 3 does, arXiv:2407.21783, section 3.3.2); a recurrence that is linear in its
state runs from zero on every piece at once, and what came before is added afterwards.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.placement import free_axes

AXIS = "context"


def cut_by(*lengths: int) -> str | None:
    """The axis, if the mesh in context cuts rows of these lengths along it."""
    size = free_axes().get(AXIS, 1)
    return AXIS if size > 1 and all(n and n % size == 0 for n in lengths) else None


def gathered(tree: Any) -> Any:
    """Arrays [B T ..] of all pieces, in order."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=1, tiled=True), tree)


def before(x: Float[Array, "B T *rest"], count: int, first: Array) -> Array:
    """The last `count` tokens of the piece before this one; of the first piece, `first`."""
    n = jax.lax.axis_size(AXIS)
    pieces = jax.lax.all_gather(x[:, x.shape[1] - count :], AXIS)  # [n B count ..]: a few tokens
    pieces = jnp.concatenate([first[None].astype(x.dtype), pieces[: n - 1]])
    return pieces[jax.lax.axis_index(AXIS)]


def of_last(x: Any) -> Any:
    """What the last piece holds, on all."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS)[-1], x)


def carried(
    start: Array,
    own: Array,
    through: Array,
    compose: Callable[[Array, Array], Array] = jnp.multiply,
) -> tuple[Array, Array]:
    """The state that reaches this piece, and that after the last one.

    `own` is a piece's last state if it begins with none; `compose(through, state)` is what it
    leaves of a state that reaches it, linear in `state`; `start` reaches the first piece.
    """
    owns, throughs = (jax.lax.all_gather(x, AXIS) for x in (own, through))
    states = [start]
    for i in range(jax.lax.axis_size(AXIS)):
        states.append(compose(throughs[i], states[-1]) + owns[i])
    return jnp.stack(states[:-1])[jax.lax.axis_index(AXIS)], states[-1]
