"""Gradients of a batch by one of four strategies, equal to those of the whole batch at once.

- `full_batch_gradients`: one forward and one backward pass over the whole batch.
- `accumulated_gradients`: microbatches one after another, for objectives whose terms are sums over
  rows. Each term is divided by its weight in the whole batch, so that the gradients of the
  microbatches add up. One term is no sum over rows: the balance loss of a Mixture of Experts
  multiplies two means over tokens. Under `moe.balance_over=microbatch` it is formed per
  microbatch, and another number of microbatches is another loss.
- `batch_balance_gradients`: the same under `moe.balance_over=batch`. A first forward pass, with the
  same random keys, counts the experts' load over the whole batch. The load has no gradient, and
  the balance loss is linear in the other mean, so with this load the microbatches add up.
- `grad_cache_gradients`: microbatches for objectives that compare rows with each other
  (contrastive). GradCache (Gao et al., arXiv:2101.06983): encode all microbatches without a
  gradient, differentiate the loss with respect to the embeddings, then encode each microbatch
  again, with the same random keys, and propagate the gradient of its embeddings to the parameters.

The gradients of a mixture are the weighted sum of those of its parts (`combine_parts`), each of
which uses the strategy that it would use alone.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from arch import ModelConfig
from arch.layers.dropout import maybe_split_key
from arch.weighted_sum import AuxMetrics, ProductOfMeans, WeightedSum, divide_by_weight
from objectives import (
    Batch,
    Embeddings,
    LossTerm,
    Metrics,
    MixturePart,
    Objective,
    Trainable,
    all_term_weights,
    mixture_parts,
)

GradResult = tuple[Trainable, Float[Array, ""], Metrics]  # gradients, loss, metrics
Counts = tuple[Float[Array, "layers E"], Float[Array, " layers"]]  # of `ProductOfMeans`
# What the loss of a microbatch needs of the rest of the batch: whole: there is no rest; weights:
# the weights of its terms; counts: the counts of products of means, too; rows: the rows.
BatchDependence = Literal["whole", "weights", "counts", "rows"]


def compute_gradients(
    objective: Objective,
    trainable: Trainable,
    batch: Batch,
    key: Array | None,
    grad_accum_steps: int,
) -> GradResult:
    """Returns the gradients, the loss and the metrics of a batch.

    The batch is processed in `grad_accum_steps` microbatches, one after another. The parts of a
    mixture are differentiated one after another, each as it would be alone. `key` is for dropout.
    """
    parts = mixture_parts(objective)
    keys = maybe_split_key(key, len(parts)) if len(parts) > 1 else (key,)
    results = []
    for part, part_key in zip(parts, keys, strict=True):
        dependence = batch_dependence(part.objective, trainable.model.config, grad_accum_steps)
        gradients = STRATEGIES[dependence]
        part_batch = part.select_batch(batch)
        results.append(gradients(part, trainable, part_batch, part_key, grad_accum_steps))
    return results[0] if len(results) == 1 else combine_parts(parts, results)


def batch_dependence(
    objective: Objective, model: ModelConfig, grad_accum_steps: int
) -> BatchDependence:
    """Returns what the loss of one of `grad_accum_steps` microbatches needs of the others."""
    if grad_accum_steps == 1:
        return "whole"
    if not objective.sums_over_rows:
        return "rows"
    return "counts" if model.balances_batch() else "weights"


def full_batch_gradients(
    part: MixturePart,
    trainable: Trainable,
    batch: Batch,
    key: Array | None,
    num_microbatches: int = 1,
) -> GradResult:
    """Returns the gradients of one objective from a single pass over the whole batch."""

    def loss_fn(trainable: Trainable) -> tuple[Array, Metrics]:
        return _forward_and_loss(part, trainable, batch, batch, key)

    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
    return grads, loss, metrics


def accumulated_gradients(
    part: MixturePart,
    trainable: Trainable,
    batch: Batch,
    key: Array | None,
    num_microbatches: int,
) -> GradResult:
    """Returns the gradients of an objective that sums over rows, added up over microbatches."""
    return _accumulate(part, trainable, batch, key, num_microbatches, counts=())


def batch_balance_gradients(
    part: MixturePart,
    trainable: Trainable,
    batch: Batch,
    key: Array | None,
    num_microbatches: int,
) -> GradResult:
    """Returns the gradients added up over microbatches, with a balance loss of the whole batch."""
    part_trainable = part.select_trainable(trainable)

    def count(_: None, xs: tuple[Batch, Array]) -> tuple[None, list[Counts]]:
        microbatch, index = xs
        out = part.objective.forward(part_trainable, microbatch, _microbatch_key(key, index))
        products = filter(_is_product, jax.tree.leaves(out, is_leaf=_is_product))
        return None, [(product.counts, product.count_weight) for product in products]

    microbatches = jax.tree.map(lambda x: _interleave(x, num_microbatches), batch)
    with jax.named_scope("count"):
        _, counts = jax.lax.scan(count, None, (microbatches, jnp.arange(num_microbatches)))
        counts = jax.tree.map(lambda x: jnp.sum(x, axis=0), counts)
    return _accumulate(part, trainable, batch, key, num_microbatches, counts)


def grad_cache_gradients(
    part: MixturePart,
    trainable: Trainable,
    batch: Batch,
    key: Array | None,
    num_microbatches: int,
) -> GradResult:
    """Returns the gradients of an objective that compares rows, with cached embeddings."""
    objective = part.objective
    microbatches = jax.tree.map(lambda x: _interleave(x, num_microbatches), batch)
    inputs = microbatches, jnp.arange(num_microbatches)

    def encode(trainable: Trainable, microbatch: Batch, index: Array) -> Embeddings:
        return objective.forward(
            part.select_trainable(trainable), microbatch, _microbatch_key(key, index)
        )

    def loss_fn(trainable: Trainable, vectors: PyTree, aux: AuxMetrics) -> tuple[Array, Metrics]:
        embeddings = Embeddings(vectors, aux)
        return _loss(objective, part.select_trainable(trainable), embeddings, batch, batch)

    with jax.named_scope("encode"):
        _, out = jax.lax.scan(lambda _, xs: (None, encode(trainable, *xs)), None, inputs)
    vectors = jax.tree.map(_deinterleave, out.vectors)
    aux = jax.tree.map(lambda x: jnp.sum(x, axis=0), out.aux)
    value_and_grad = jax.value_and_grad(loss_fn, argnums=(0, 1, 2), has_aux=True)
    (loss, metrics), (grads, vector_grads, aux_grads) = value_and_grad(trainable, vectors, aux)
    vector_grads = jax.tree.map(lambda x: _interleave(x, num_microbatches), vector_grads)

    def add_microbatch(total: Trainable, xs: tuple[Batch, Array, PyTree]) -> tuple[Trainable, None]:
        microbatch, index, vector_grad = xs
        _, vjp = jax.vjp(lambda trainable: encode(trainable, microbatch, index), trainable)
        return jax.tree.map(jnp.add, total, vjp(Embeddings(vector_grad, aux_grads))[0]), None

    with jax.named_scope("backward"):
        return jax.lax.scan(add_microbatch, grads, (*inputs, vector_grads))[0], loss, metrics


def combine_parts(parts: tuple[MixturePart, ...], results: list[GradResult]) -> GradResult:
    """Returns the sum of the parts' gradients and losses, each times the part's coefficient."""
    grads = jax.tree.map(
        lambda *g: sum(part.coefficient * x for part, x in zip(parts, g, strict=True)),
        *(grads for grads, _, _ in results),
    )
    metrics, loss = Metrics(), jnp.zeros(())
    for part, (_, part_loss, part_metrics) in zip(parts, results, strict=True):
        loss += part.coefficient * part_loss
        metrics |= {part.label(name): amount for name, amount in part_metrics.items()}
    return grads, loss, metrics


GradFn = Callable[[MixturePart, Trainable, Batch, Array | None, int], GradResult]
# The strategy by what the loss of a microbatch needs of the rest of the batch.
STRATEGIES: dict[BatchDependence, GradFn] = {
    "whole": full_batch_gradients,
    "weights": accumulated_gradients,
    "counts": batch_balance_gradients,
    "rows": grad_cache_gradients,
}


def _accumulate(
    part: MixturePart,
    trainable: Trainable,
    batch: Batch,
    key: Array | None,
    num_microbatches: int,
    counts: Sequence[Counts],
) -> GradResult:
    """The sum of the gradients of microbatches, with these counts in their products of means."""

    def loss_fn(
        trainable: Trainable, microbatch: Batch, key: Array | None
    ) -> tuple[Array, Metrics]:
        return _forward_and_loss(part, trainable, microbatch, batch, key, counts)

    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def add_microbatch(total: GradResult, xs: tuple[Batch, Array]) -> tuple[GradResult, None]:
        microbatch, index = xs
        micro_key = _microbatch_key(key, index)
        (loss, metrics), grads = value_and_grad(trainable, microbatch, micro_key)
        return jax.tree.map(jnp.add, total, (grads, loss, metrics)), None

    microbatches = jax.tree.map(lambda x: _interleave(x, num_microbatches), batch)
    first = jax.tree.map(lambda x: x[0], microbatches)
    shapes = jax.eval_shape(value_and_grad, trainable, first, key)
    (loss, metrics), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    zeros = grads, loss, metrics
    return jax.lax.scan(add_microbatch, zeros, (microbatches, jnp.arange(num_microbatches)))[0]


def _forward_and_loss(
    part: MixturePart,
    trainable: Trainable,
    microbatch: Batch,
    batch: Batch,
    key: Array | None,
    counts: Sequence[Counts] = (),
) -> tuple[Array, Metrics]:
    part_trainable = part.select_trainable(trainable)
    out = part.objective.forward(part_trainable, microbatch, key)
    if counts:
        out = _replace_counts(out, counts)
    return _loss(part.objective, part_trainable, out, microbatch, batch)


def _loss(
    objective: Objective, trainable: Trainable, out: PyTree, microbatch: Batch, batch: Batch
) -> tuple[Array, Metrics]:
    """The share of `microbatch` in the loss of `batch`."""
    terms, metrics = objective.reduce(trainable, out, microbatch)
    weights = all_term_weights(objective, batch, list(terms))
    loss = sum(t.coefficient * divide_by_weight(t.sum, weights[n]) for n, t in terms.items())
    return jnp.asarray(loss), metrics | _weighted_sums(terms)


def _replace_counts(out: PyTree, counts: Sequence[Counts]) -> PyTree:
    """The output of `forward` with `counts` in its products of means, in their order."""
    remaining = iter(counts)

    def replace(leaf: PyTree) -> PyTree:
        if not _is_product(leaf):
            return leaf
        total, weight = next(remaining)
        return leaf._replace(counts=total, count_weight=weight)

    return jax.tree.map(replace, out, is_leaf=_is_product)


def _is_product(leaf: PyTree) -> bool:
    return isinstance(leaf, ProductOfMeans)


def _microbatch_key(key: Array | None, index: Array) -> Array | None:
    return None if key is None else jax.random.fold_in(key, index)


def _weighted_sums(terms: dict[str, LossTerm]) -> Metrics:
    return {name: WeightedSum(term.sum, term.weight) for name, term in terms.items()}


def _interleave(x: Array, num_microbatches: int) -> Array:
    """[B ...] to [M B/M ...] for M microbatches, each with rows from every device."""
    shape = x.shape[0] // num_microbatches, num_microbatches, *x.shape[1:]
    return x.reshape(shape).swapaxes(0, 1)


def _deinterleave(x: Array) -> Array:
    """[M B/M ...] back to [B ...], in the order of the batch."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
