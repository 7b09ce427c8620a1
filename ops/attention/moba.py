"""Block selection (Mixture of Block Attention, MoBA, Lu et al., arXiv:2502.13189).

A document is cut into blocks. A query sees its own block causally, and the `top_blocks` - 1 earlier
blocks of its document whose mean key has the largest product with it. The selection is made per
query head, and no gradient flows through it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.attention.mask import BlockSelection, TokenIndex, first_tokens


def select_blocks(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    queries: TokenIndex,
    keys: TokenIndex,
    *,
    block_size: int,
    top_blocks: int,
    aligned: bool,
) -> tuple[TokenIndex, TokenIndex]:
    """Returns both indices with the blocks that each query sees.

    Args:
        q: Queries.
        k: Keys; those of a document are in order, possibly with padding in between.
        queries: Order and documents of the queries.
        keys: Order and documents of the keys, among which are those of the queries' documents.
        block_size: Number of tokens of a block.
        top_blocks: Number of blocks that a query sees, its own included.
        aligned: Whether queries and keys are one row.
    """
    (B, T, H, K), (S, G) = q.shape, k.shape[1:3]
    wide, N = jnp.promote_types(q.dtype, jnp.float32), num_whole_blocks(S, block_size)
    starts = _document_starts(keys)
    key_blocks = _block_starts(keys.order, starts, block_size)
    if aligned:
        query_starts = _document_starts(queries)
    else:
        same = queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :]
        query_starts = jnp.max(jnp.where(same, starts[:, None], 0), axis=2)
    query_own = _block_starts(queries.order, query_starts, block_size)
    # A block is whole if its last token is there; whole blocks are numbered along the row.
    is_last = (keys.segment_ids != 0) & (keys.order == key_blocks + block_size - 1)
    ends = jnp.sort(jnp.where(is_last, jnp.arange(S), S), axis=1)[:, :N]
    ends = jnp.pad(ends, [(0, 0), (0, N - ends.shape[1])], constant_values=S)
    block_own, block_segment = (
        jnp.where(ends < S, jnp.take_along_axis(x, jnp.minimum(ends, S - 1), axis=1), -1)
        for x in (key_blocks, keys.segment_ids)
    )
    number = jnp.minimum(jnp.cumsum(is_last, axis=1) - is_last, N - 1)
    is_whole = jnp.take_along_axis(block_own, number, axis=1) == key_blocks
    block_number = jnp.where(is_whole & (keys.segment_ids != 0), number, -1)
    sums = jax.vmap(lambda k, n: jax.ops.segment_sum(k, n, N))(
        k.astype(wide), jnp.where(block_number < 0, N, block_number)
    )
    scores = jnp.einsum("btgrk,bngk->btgrn", q.reshape(B, T, G, H // G, K).astype(wide), sums)
    earlier = block_own[:, None] < query_own[:, :, None]
    earlier &= block_segment[:, None] == queries.segment_ids[:, :, None]
    scores = jnp.where(earlier[:, :, None], scores.reshape(B, T, H, N), -jnp.inf)
    top, index = jax.lax.top_k(jax.lax.stop_gradient(scores), min(top_blocks - 1, N))
    selected = jnp.put_along_axis(
        jnp.zeros(scores.shape, bool), index, top > -jnp.inf, axis=3, inplace=False
    )
    return (
        queries._replace(blocks=BlockSelection(query_own, query_own, selected)),
        keys._replace(
            blocks=BlockSelection(key_blocks, block_number, jnp.zeros((B, S, 0, 0), bool))
        ),
    )


def num_whole_blocks(length: int, block_size: int) -> int:
    """Returns the number of whole blocks that a row can have, and at least 1."""
    return max(1, length // block_size)


def _document_starts(tokens: TokenIndex) -> Int[Array, "B T"]:
    """Returns the order of the first token of each token's document; padding may stand between."""
    is_first = first_tokens(tokens.segment_ids)
    return jax.lax.cummax(jnp.where(is_first, tokens.order, 0), axis=1)


def _block_starts(
    order: Int[Array, "B T"], starts: Int[Array, "B T"], block_size: int
) -> Int[Array, "B T"]:
    return starts + (order - starts) // block_size * block_size
