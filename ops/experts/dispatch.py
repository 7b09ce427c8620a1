"""Movement of token vectors to the slots that experts read, and back, by gathers alone.

An assignment (token, choice) has a slot in an array that the experts read, and a slot has a token.
With both directions stored, the gradient of a gather is a gather too, so that no vector is
scattered. Tokens are those of all rows, "BT"; a token has k choices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


class DispatchIndex(NamedTuple):
    """For each slot its token and for each assignment its slot, with BT tokens of k choices."""

    token: Int[Array, " slots"]  # BT: the slot is empty
    slot: Int[Array, "BT k"]  # the number of slots: the assignment has no slot


def sort_by_expert(
    experts: Int[Array, "BT k"], num_experts: int, num_slots: int
) -> tuple[DispatchIndex, Int[Array, " E"]]:
    """Returns slots sorted by expert, then by token, and the number of assignments of each expert.

    Ids from `num_experts` on are no assignment. `num_slots` must be enough for all others.
    """
    tokens, k = experts.shape
    ids = experts.reshape(-1)
    order = jnp.argsort(ids, stable=True)
    sizes = jnp.sum(ids[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    token = jnp.where(jnp.arange(num_slots) < jnp.sum(sizes), order[:num_slots] // k, tokens)
    slot = jnp.where(ids < num_experts, jnp.argsort(order), num_slots)
    return DispatchIndex(token, slot.reshape(tokens, k)), sizes


def capacity_slots(experts: Int[Array, "B T k"], num_experts: int, capacity: int) -> DispatchIndex:
    """Returns slots [E, B, capacity]: expert e's i-th token of row b is in slot (e, b, i).

    Ids from `num_experts` on are no assignment. No row may have more than `capacity` tokens for an
    expert.
    """
    B, T, k = experts.shape
    num_slots = num_experts * B * capacity
    slot = (experts * B + jnp.arange(B)[:, None, None]) * capacity + position_in_expert(
        experts, num_experts
    )
    slot = jnp.where(experts < num_experts, slot, num_slots).reshape(B * T, k)
    tokens = jnp.broadcast_to(jnp.arange(B * T)[:, None], slot.shape)
    token = jnp.full((num_slots,), B * T).at[slot].set(tokens, mode="drop")
    return DispatchIndex(token, slot)


def position_in_expert(experts: Int[Array, "B T k"], num_experts: int) -> Int[Array, "B T k"]:
    """Returns how many earlier tokens of the row have the same expert; -1 for no expert."""
    is_assigned = jnp.any(experts[..., None] == jnp.arange(num_experts), axis=2)
    return take_experts(jnp.cumsum(is_assigned, axis=1, dtype=jnp.int32), experts) - 1


def take_experts(
    table: Shaped[Array, "B T E"], experts: Int[Array, "B T k"]
) -> Shaped[Array, "B T k"]:
    """Returns each token's entries of `table` for its experts, 0 for no expert.

    It is computed as a masked sum, because the gradient of a sum needs no scatter.
    """
    hits = experts[..., None] == jnp.arange(table.shape[2])
    return jnp.sum(jnp.where(hits, table[:, :, None], 0), axis=3)


@jax.custom_vjp
def dispatch(x: Float[Array, "BT D"], index: DispatchIndex) -> Float[Array, "slots D"]:
    """Returns the vector of each slot's token, 0 for an empty slot."""
    return _take_rows(x, index.token)


def _dispatch_forward(x: Array, index: DispatchIndex) -> tuple[Array, DispatchIndex]:
    return dispatch(x, index), index


def _dispatch_backward(index: DispatchIndex, d_slots: Array) -> tuple[Array, None]:
    ones = jnp.ones(index.slot.shape, jnp.promote_types(d_slots.dtype, jnp.float32))
    return _weighted_sum(d_slots, ones, index.slot), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def combine(
    y: Float[Array, "slots D"], weights: Float[Array, "BT k"], index: DispatchIndex
) -> Float[Array, "BT D"]:
    """Returns the weighted sum of each token's slots, computed in the dtype of `weights`."""
    return _weighted_sum(y, weights, index.slot)


def _combine_forward(y: Array, weights: Array, index: DispatchIndex) -> tuple[Array, tuple]:
    return combine(y, weights, index), (y, weights, index)


def _combine_backward(residuals: tuple, d_out: Array) -> tuple[Array, Array, None]:
    y, weights, (token, slot) = residuals

    def choice_gradient(_: None, slots: Array) -> tuple[None, Array]:
        return None, jnp.sum(d_out.astype(weights.dtype) * _take_rows(y, slots), axis=1)

    d_weights = jax.lax.scan(choice_gradient, None, slot.T, unroll=min(slot.shape[1], UNROLL))[1].T
    slot_weights = jnp.zeros(token.shape, weights.dtype).at[slot].set(weights, mode="drop")
    d_y = (slot_weights[:, None] * _take_rows(d_out, token)).astype(y.dtype)
    return d_y, d_weights, None


combine.defvjp(_combine_forward, _combine_backward)

UNROLL = 8  # choices of a token in one iteration of a loop over the k choices


def _weighted_sum(y: Array, weights: Array, slots: Array) -> Array:
    def add(total: Array, choice: tuple[Array, Array]) -> tuple[Array, None]:
        slots, weight = choice
        return total + weight[:, None] * _take_rows(y, slots), None

    zeros = jnp.zeros((slots.shape[0], y.shape[1]), weights.dtype)
    choices = slots.T, weights.T
    total, _ = jax.lax.scan(add, zeros, choices, unroll=max(1, min(slots.shape[1], UNROLL)))
    return total.astype(y.dtype)


def _take_rows(x: Array, ids: Array) -> Array:
    """Returns `x[ids]`, with 0 for ids past the end."""
    return x.at[ids].get(mode="fill", fill_value=0)
