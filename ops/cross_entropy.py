"""Cross-entropy fused with the output head: logits exist only for one chunk of tokens at a time.

    logits = cap(scale * hidden @ table.T + bias);   loss = logsumexp(logits) - logits[target]

The backward pass recomputes each chunk's logits (Wijmans et al., arXiv:2411.09009), unless a single
chunk holds all tokens. One step of that paper is left out on purpose: it skips small gradients,
which changes the result.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ops.context_parallel import context_axis
from ops.implementation import PS, auto_axes, batch_axes, map_shards, select_implementation

# A chunk on one device has CHUNK_TOKENS tokens, or CHUNK_LOGITS logits if that is more tokens. With
# fewer tokens, most of the time would go into adding up the chunks' gradients of the table.
CHUNK_TOKENS = 1024
CHUNK_LOGITS = 2**24


class CrossEntropy(NamedTuple):
    """Results for each token."""

    loss: Float[Array, "B T"]  # in nats
    logsumexp: Float[Array, "B T"]  # of the logits
    correct: Bool[Array, "B T"]  # whether the target is the first of the highest logits


class LogitParams(NamedTuple):
    """The static parameters that turn `hidden @ table.T` into logits."""

    vocab_size: int  # columns from this index on are padding
    scale: float
    softcap: float


def cross_entropy(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    *,
    bias: Float[Array, " V"] | None = None,
    vocab_size: int,
    scale: float = 1.0,
    softcap: float = 0.0,
    implementation: str | None = None,
) -> CrossEntropy:
    """Returns the loss of each target in nats, with the logsumexp and the correctness.

    Losses are in at least float32; the matrix products run in the dtype of `hidden`. Columns from
    `vocab_size` on are never predicted, and their rows of `table` get no gradient. A `softcap`
    c > 0 replaces the logits by c tanh(logits / c). `loss` and `logsumexp` are differentiable.

    Raises:
        ValueError: if `vocab_size` is not between 1 and the number of rows of the table.
        ConfigError: if the implementation is unknown.
    """
    if not 0 < vocab_size <= table.shape[0]:
        raise ValueError(
            f"vocab_size {vocab_size} must be 1 .. {table.shape[0]}, the rows of the table"
        )
    name = select_implementation("cross_entropy", implementation, dict.fromkeys(IMPLEMENTATIONS))
    return IMPLEMENTATIONS[name](
        hidden, targets, table, bias, LogitParams(vocab_size, scale, softcap)
    )


def reference(
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"] | None,
    logit_params: LogitParams,
) -> CrossEntropy:
    """Computes the loss from all logits at once."""
    logits = _logits(hidden, table.astype(hidden.dtype), bias, logit_params)
    lse = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return CrossEntropy(lse - target_logits, lse, jnp.argmax(logits, axis=-1) == targets)


def chunked(
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"] | None,
    logit_params: LogitParams,
) -> CrossEntropy:
    """Computes the loss in chunks along T.

    Each device sums the gradient of `table` over its rows before the devices sum theirs.
    """
    axes, context = batch_axes(hidden.shape[0]), context_axis(hidden.shape[1])
    token_spec, replicated = PS(axes or None, context), PS()
    axes = (*axes, context) if context else axes
    run = map_shards(
        functools.partial(_fused, logit_params),
        axes,
        (token_spec, token_spec, replicated, replicated),
        token_spec,
    )
    return run(hidden, targets, table, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(
    logit_params: LogitParams, hidden: Array, targets: Array, table: Array, bias: Array | None
) -> CrossEntropy:
    return _forward(logit_params, hidden, targets, table, bias)[0]


def _forward(
    logit_params: LogitParams, hidden: Array, targets: Array, table: Array, bias: Array | None
) -> tuple[CrossEntropy, tuple]:
    count, cast = _num_chunks(hidden, table), table.astype(hidden.dtype)
    if count == 1:
        logits = _logits(hidden, cast, bias, logit_params)
        out = _losses(logits, targets)
        return out, (hidden, targets, table, bias, out.logsumexp, logits)

    def chunk_losses(chunk: tuple[Array, Array]) -> CrossEntropy:
        hidden, targets = chunk
        return _losses(_logits(hidden, cast, bias, logit_params), targets)

    losses = jax.lax.map(chunk_losses, (_split(hidden, count), _split(targets, count)))
    out = jax.tree.map(lambda x: _join(x, hidden.shape[1]), losses)
    return out, (hidden, targets, table, bias, out.logsumexp, None)


def _backward(logit_params: LogitParams, residuals: tuple, grads: CrossEntropy) -> tuple:
    hidden, targets, table, bias, lse, logits = residuals
    count, cast = _num_chunks(hidden, table), table.astype(hidden.dtype)
    tokens = (hidden, targets, lse, grads.loss, grads.logsumexp)
    if logits is not None:
        d_hidden, d_head = _chunk_gradient(logits, tokens, cast, bias, logit_params)
    else:

        def step(sums: tuple, chunk: tuple) -> tuple[tuple, Array]:
            logits = _logits(chunk[0], cast, bias, logit_params)
            d_hidden, d_head = _chunk_gradient(logits, chunk, cast, bias, logit_params)
            return jax.tree.map(jnp.add, sums, d_head), d_hidden

        fills = (0, 0, jnp.inf, 0, 0)  # a logsumexp of inf gives padding softmax weights of 0
        chunks = tuple(_split(x, count, fill) for x, fill in zip(tokens, fills, strict=True))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, lse.dtype), (table, bias))
        d_head, d_chunks = jax.lax.scan(step, zeros, chunks)
        d_hidden = _join(d_chunks, hidden.shape[1])
    d_table, d_bias = jax.tree.map(lambda d, x: d.astype(x.dtype), d_head, (table, bias))
    return d_hidden, None, d_table, d_bias


_fused.defvjp(_forward, _backward)


def _logits(
    hidden: Array, table: Array, bias: Array | None, logit_params: LogitParams
) -> Float[Array, "B T V"]:
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=wide)
    if logit_params.scale != 1:
        logits = logits * logit_params.scale
    if bias is not None:
        logits = logits + bias.astype(wide)
    if logit_params.softcap:
        logits = logit_params.softcap * jnp.tanh(logits / logit_params.softcap)
    if logits.shape[-1] == logit_params.vocab_size:
        return logits
    return jnp.where(_column_ids(logits) < logit_params.vocab_size, logits, -jnp.inf)


def _losses(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> CrossEntropy:
    top = jnp.max(logits, axis=-1, keepdims=True)
    lse = (top + jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)))[..., 0]
    targets = targets[..., None]
    target_logits = jnp.take_along_axis(logits, targets, axis=-1)
    ties = (logits == target_logits) & (_column_ids(logits) < targets)
    wrong = jnp.any((logits > target_logits) | ties, axis=-1)  # cheaper than argmax
    return CrossEntropy(lse - target_logits[..., 0], lse, ~wrong)


def _chunk_gradient(
    logits: Array, chunk: tuple, table: Array, bias: Array | None, logit_params: LogitParams
) -> tuple[Array, tuple[Array, Array | None]]:
    """Returns d_hidden and (d_table, d_bias) of one chunk.

    `chunk` holds hidden, targets, logsumexp, and the gradients of the loss and of logsumexp.
    """
    targets, lse, d_loss, d_lse = (x[..., None] for x in chunk[1:])
    columns, hidden = _column_ids(logits), chunk[0]
    d_logits = jnp.exp(logits - lse) * (d_loss + d_lse) - jnp.where(columns == targets, d_loss, 0)
    if logit_params.softcap:
        d_logits = jnp.where(
            columns < logit_params.vocab_size,
            d_logits * (1 - jnp.square(logits / logit_params.softcap)),
            0,
        )
    d_bias = None if bias is None else jnp.sum(d_logits, axis=(0, 1))
    d_logits = (d_logits * logit_params.scale).astype(hidden.dtype)
    d_hidden = jnp.einsum("btv,vd->btd", d_logits, table, preferred_element_type=lse.dtype)
    # [D V], then transposed: XLA on CPUs would transpose the larger d_logits element by element.
    # The barrier keeps it from folding this transpose into the product again; in bfloat16, jax 0.12
    # could not run that product at all.
    d_table = jnp.einsum("btd,btv->dv", hidden, d_logits, preferred_element_type=lse.dtype)
    d_table = jax.lax.optimization_barrier(d_table).T
    return d_hidden.astype(hidden.dtype), (d_table, d_bias)


def _column_ids(logits: Float[Array, "B T V"]) -> Int[Array, "1 1 V"]:
    return jax.lax.broadcasted_iota(jnp.int32, (1, 1, logits.shape[-1]), 2)


def _num_chunks(hidden: Float[Array, "B T D"], table: Float[Array, "V D"]) -> int:
    """Returns the number of chunks along T."""
    (B, T, _), V, sizes = hidden.shape, table.shape[0], auto_axes()
    tokens, columns = B * T / sizes.get("context", 1), V / sizes.get("model", 1)
    return max(1, min(T, math.ceil(tokens / max(CHUNK_TOKENS, CHUNK_LOGITS / columns))))


def _split(x: Array, count: int, fill: float = 0) -> Array:
    """Splits [B T ..] into [count B T/count ..]; the last chunk is padded with `fill`."""
    B, T, *inner = x.shape
    size = -(-T // count)
    x = jnp.pad(x, [(0, 0), (0, count * size - T), *[(0, 0)] * len(inner)], constant_values=fill)
    return jnp.moveaxis(x.reshape(B, count, size, *inner), 1, 0)


def _join(x: Array, length: int) -> Array:
    """Reverses `_split` and cuts its padding off: T is `length`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


IMPLEMENTATIONS = {"reference": reference, "xla": chunked}
