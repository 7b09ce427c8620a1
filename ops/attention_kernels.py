"""Attention by the platforms' own kernels: cuDNN's on NVIDIA, splash (Pallas) on TPU.

Each comes with the reason why it cannot run a case. Both are opaque to the compiler's partitioner,
so on a mesh they run on each device's rows and heads; a row's tokens are gathered. Left out on
purpose: splash with prefixes, and cuDNN's packed layout (the number of documents is data).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.attention_mask import Rule, Tokens
from ops.placement import P, batch_axes, by_device, free_axes, platform

LANES = 128  # of a TPU register: splash takes rows in multiples of it
BLOCKS = (512, 384, 256, 128)  # tile sizes of splash, best first
MASK = 2**26  # elements of the T x S mask that cuDNN reads, per row


def splash(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G E"],
    queries: Tokens,
    keys: Tokens,
    rule: Rule,
    *,
    interpret: bool = False,
) -> Float[Array, "B T H E"]:
    """Block-sparse flash attention; documents by segment ids, causality and windows by place."""

    def rows(q: Array, k: Array, v: Array, queries: Tokens, keys: Tokens) -> Array:
        T, H = q.shape[1:3]
        length = -(-T // LANES) * LANES

        def padded(x: Array) -> Array:
            return jnp.pad(x, [(0, 0), (0, length - T), *[(0, 0)] * (x.ndim - 2)])

        q, k, v = (padded(x).swapaxes(1, 2) for x in (q, k, v))
        segments = padded(queries.segments), padded(keys.segments)
        o = _kernel(length, H, rule, keys, interpret)(q * rule.scale, k, v, segments)
        return o.swapaxes(1, 2)[:, :T]

    o = _on_mesh(rows, q, k, v, queries, keys)
    return jnp.where((queries.segments != 0)[:, :, None, None], o, 0)  # padding saw padding


def _kernel(
    length: int, heads: int, rule: Rule, keys: Tokens, interpret: bool
) -> Callable[[Array, Array, Array, tuple[Array, Array]], Array]:
    """Of q [B H T K], k, v and the segments of queries and keys."""
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # slow, only for TPU

    shape, reach = (length, length), rule.reach(keys)
    block = next(size for size in BLOCKS if length % size == 0)
    mask = pallas.FullMask(shape) if reach == (None, None) else pallas.LocalMask(shape, reach, 0)
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * heads),
        block_sizes=pallas.BlockSizes(
            *(block, block, block),
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=rule.softcap or None,
        interpret=interpret,
    )
    return jax.vmap(lambda q, k, v, segments: kernel(q, k, v, pallas.SegmentIds(*segments)))


def splash_reason(q: Array, k: Array, v: Array, keys: Tokens, rule: Rule) -> str | None:
    """Why splash cannot run this, if it cannot."""
    left, right = rule.reach(keys)
    cases = {
        f"it needs a TPU, this is a {platform()}": platform() != "tpu",
        f"it takes float32 or bfloat16, not {q.dtype}": q.dtype not in (jnp.float32, jnp.bfloat16),
        "queries and keys must be one row": not rule.aligned or not q.shape[1],
        "a query must see itself": (left or 0) < 0 or (right or 0) < 0,
        "it knows no prefix": rule.causal and keys.prefix is not None,
    }
    return _first(cases) or _shared_reason(q, k, v, rule)


def cudnn(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    queries: Tokens,
    keys: Tokens,
    rule: Rule,
) -> Float[Array, "B T H K"]:
    """Flash attention of cuDNN; who sees whom goes in as a mask, causality also skips work."""

    def rows(q: Array, k: Array, v: Array, queries: Tokens, keys: Tokens) -> Array:
        visible = rule.visible(queries, keys)
        o = jax.nn.dot_product_attention(
            *(q, k, v),
            mask=visible[:, None],
            scale=rule.scale,
            is_causal=rule.reach(keys)[1] == 0,
            implementation="cudnn",
        )
        return jnp.where(jnp.any(visible, axis=-1)[:, :, None, None], o, 0)

    return _on_mesh(rows, q, k, v, queries, keys)


def cudnn_reason(q: Array, k: Array, v: Array, keys: Tokens, rule: Rule) -> str | None:
    """Why cuDNN cannot run this, if it cannot."""
    (_, T, _, K), S, E = q.shape, k.shape[1], v.shape[-1]
    cases = {
        f"it needs an NVIDIA GPU, this is a {platform()}": not _nvidia(),
        f"it takes bfloat16 or float16, not {q.dtype}": q.dtype not in (jnp.bfloat16, jnp.float16),
        f"heads must be multiples of 8 up to 128 wide, not {K}": K % 8 != 0 or K > 128,
        f"values must be as wide as keys, not {E} and {K}": E != K,
        f"lengths must be even, not {T} and {S}": T % 2 + S % 2 > 0 or not T * S,
        f"its mask of {T} x {S} would not fit": T * S > MASK,
        "it has no softcap": rule.softcap != 0,
    }
    return _first(cases) or _shared_reason(q, k, v, rule)


def _shared_reason(q: Array, k: Array, v: Array, rule: Rule) -> str | None:
    """What neither kernel does."""
    H, G, model = q.shape[2], k.shape[2], free_axes().get("model", 1)
    cases = {
        "it takes no bias": rule.bias is not None,
        "it has no dropout": rule.dropout > 0,
        f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}": len({q.dtype, k.dtype, v.dtype}) > 1,
        f"mesh.model {model} does not divide {H} heads over {G}": H % math.lcm(G, model) > 0,
    }
    return _first(cases)


def _first(cases: dict[str, bool]) -> str | None:
    return next((reason for reason, true in cases.items() if true), None)


def _nvidia() -> bool:
    """A GPU of NVIDIA's is attached (without one, jax finds no cuDNN to compile for either)."""
    return platform() == "gpu" and "NVIDIA" in jax.devices()[0].device_kind


def _on_mesh(
    rows: Callable[..., Array], q: Array, k: Array, v: Array, queries: Tokens, keys: Tokens
) -> Array:
    """`rows` on each device's batch rows and heads."""
    model = free_axes().get("model", 1)
    copies = model // math.gcd(k.shape[2], model)  # so that key heads divide too
    if copies > 1:
        k, v = jnp.repeat(k, copies, axis=2), jnp.repeat(v, copies, axis=2)
    batch = batch_axes(q.shape[0]) or None
    heads = "model" if model > 1 else None
    specs = P(batch, None, heads), P(batch, None, heads), P(batch, None, heads), P(batch), P(batch)
    axes = tuple(free_axes()) if math.prod(free_axes().values()) > 1 else ()
    return by_device(rows, axes, specs, P(batch, None, heads))(q, k, v, queries, keys)
