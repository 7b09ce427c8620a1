"""Gradients of a whole batch, in microbatches if asked, equal to those of the batch in one.

Terms that are sums over rows are divided by their weight in the whole batch, so that the parts'
gradients add up. Where rows meet (contrastive), representations are cached (GradCache, Gao et al.,
arXiv:2101.06983): encode all parts without a gradient, differentiate the loss by what came out,
then encode each part again, under the same keys, and pull that slope back through it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from arch.dropout import split
from arch.terms import Amount
from objectives import (
    Batch,
    Learner,
    Member,
    Metrics,
    Objective,
    Represented,
    Term,
    members,
    totals,
)

Found = tuple[Learner, Float[Array, ""], Metrics]  # gradients, loss, metrics


def gradients(
    objective: Objective, learner: Learner, batch: Batch, key: Array | None, accumulate: int
) -> Found:
    """Gradients, loss and metrics of a batch, `accumulate` microbatches one after another.

    The parts of a mixture are differentiated one after another, each as it does alone.
    """
    parts = members(objective)
    keys = split(key, len(parts)) if len(parts) > 1 else (key,)
    found = []
    for member, own in zip(parts, keys, strict=True):
        some = member.batch(batch)
        if accumulate == 1:
            found.append(_whole(member, learner, some, own))
        elif member.objective.additive:
            found.append(_added(member, learner, some, own, accumulate))
        else:
            found.append(_cached(member, learner, some, own, accumulate))
    return found[0] if len(found) == 1 else _mixed(parts, found)


def _mixed(parts: tuple[Member, ...], found: list[Found]) -> Found:
    grads = jax.tree.map(
        lambda *g: sum(m.coefficient * x for m, x in zip(parts, g, strict=True)),
        *(grads for grads, _, _ in found),
    )
    metrics, loss = Metrics(), jnp.zeros(())
    for member, (_, value, said) in zip(parts, found, strict=True):
        loss += member.coefficient * value
        metrics |= {member.label(name): amount for name, amount in said.items()}
    return grads, loss, metrics


def _whole(member: Member, learner: Learner, batch: Batch, key: Array | None) -> Found:
    def loss(learner: Learner) -> tuple[Array, Metrics]:
        own = member.learner(learner)
        return _loss(member.objective, own, member.objective.encode(own, batch, key), batch, batch)

    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(learner)
    return grads, value, metrics


def _added(member: Member, learner: Learner, batch: Batch, key: Array | None, parts: int) -> Found:
    def loss(learner: Learner, micro: Batch, key: Array | None) -> tuple[Array, Metrics]:
        own = member.learner(learner)
        return _loss(member.objective, own, member.objective.encode(own, micro, key), micro, batch)

    differentiate = jax.value_and_grad(loss, has_aux=True)

    def body(carry: Any, xs: tuple[Batch, Array]) -> tuple[Any, None]:
        micro, index = xs
        (value, metrics), grads = differentiate(learner, micro, _part(key, index))
        return jax.tree.map(jnp.add, carry, (grads, value, metrics)), None

    micros = jax.tree.map(lambda x: _interleaved(x, parts), batch)
    shapes = jax.eval_shape(differentiate, learner, jax.tree.map(lambda x: x[0], micros), key)
    (value, metrics), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = grads, value, metrics
    return jax.lax.scan(body, start, (micros, jnp.arange(parts)))[0]


def _cached(member: Member, learner: Learner, batch: Batch, key: Array | None, parts: int) -> Found:
    objective = member.objective
    micros = jax.tree.map(lambda x: _interleaved(x, parts), batch)
    each = micros, jnp.arange(parts)

    def encode(learner: Learner, micro: Batch, index: Array) -> Represented:
        return objective.encode(member.learner(learner), micro, _part(key, index))

    def loss(learner: Learner, rows: Any, aux: Any) -> tuple[Array, Metrics]:
        return _loss(objective, member.learner(learner), Represented(rows, aux), batch, batch)

    with jax.named_scope("represent"):
        _, out = jax.lax.scan(lambda _, xs: (None, encode(learner, *xs)), None, each)
    rows = jax.tree.map(_whole_rows, out.rows)
    aux = jax.tree.map(lambda x: jnp.sum(x, axis=0), out.aux)
    found = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(learner, rows, aux)
    (value, metrics), (grads, by_rows, by_aux) = found
    slopes = jax.tree.map(lambda x: _interleaved(x, parts), by_rows)

    def body(carry: Learner, xs: tuple[Batch, Array, Any]) -> tuple[Learner, None]:
        micro, index, slope = xs
        _, pull = jax.vjp(lambda learner: encode(learner, micro, index), learner)
        return jax.tree.map(jnp.add, carry, pull(Represented(slope, by_aux))[0]), None

    with jax.named_scope("pull back"):
        return jax.lax.scan(body, grads, (*each, slopes))[0], value, metrics


def _loss(
    objective: Objective, learner: Learner, out: Any, micro: Batch, batch: Batch
) -> tuple[Array, Metrics]:
    """The share of `micro` in the loss of `batch`."""
    terms, metrics = objective.reduce(learner, out, micro)
    whole = totals(objective, batch, list(terms))
    total = sum(t.coefficient * t.sum / jnp.maximum(whole[n], 1) for n, t in terms.items())
    return jnp.asarray(total), metrics | _amounts(terms)


def _part(key: Array | None, index: Array) -> Array | None:
    return None if key is None else jax.random.fold_in(key, index)


def _amounts(terms: dict[str, Term]) -> Metrics:
    return {name: Amount(term.sum, term.weight) for name, term in terms.items()}


def _interleaved(x: Array, parts: int) -> Array:
    """[B ...] to [parts, B / parts, ...], each part with rows from every device."""
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _whole_rows(x: Array) -> Array:
    """[parts, B / parts, ...] back to [B ...], in the order of the batch."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
