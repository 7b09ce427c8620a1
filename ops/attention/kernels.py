"""Attention by the platforms' own kernels: cuDNN's on NVIDIA, splash (Pallas) on TPU.

For each kernel there is a function that returns why it cannot run a case. The compiler cannot
partition either kernel, so on a mesh a kernel runs on each device's rows and heads, with all tokens
of a row. Two cases are left out on purpose: splash with prefixes, and the packed layout of cuDNN,
because the number of documents is data.
"""

import importlib.util
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ops.attention.mask import AttentionSpec, TokenIndex
from ops.implementation import PS, auto_axes, batch_axes, map_shards, platform

LANES = 128  # lanes of a TPU register; splash takes row lengths that are multiples of it
BLOCK_SIZES = (512, 384, 256, 128)  # tile sizes of splash, best first
MAX_MASK_SIZE = 2**26  # maximum number of elements of the T x S mask that cuDNN reads, per row


def splash(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G Kv"],
    queries: TokenIndex,
    keys: TokenIndex,
    spec: AttentionSpec,
    *,
    interpret: bool = False,
) -> Float[Array, "B T H Kv"]:
    """Computes block-sparse flash attention by the Pallas kernel of TPUs.

    Documents are masked by segment ids; causality and windows are masked by array position.
    `interpret` interprets the kernel instead of compiling it, which works on any platform.
    """

    def attend(q: Array, k: Array, v: Array, queries: TokenIndex, keys: TokenIndex) -> Array:
        T, H = q.shape[1:3]
        length = -(-T // LANES) * LANES

        def pad(x: Array) -> Array:
            return jnp.pad(x, [(0, 0), (0, length - T), *[(0, 0)] * (x.ndim - 2)])

        q, k, v = (pad(x).swapaxes(1, 2) for x in (q, k, v))
        segments = pad(queries.segment_ids), pad(keys.segment_ids)
        o = _kernel(length, H, spec, keys, interpret)(q * spec.scale, k, v, segments)
        return o.swapaxes(1, 2)[:, :T]

    o = _on_mesh(attend, q, k, v, queries, keys)
    # In the kernel padding attends to padding, which has the same segment id 0.
    return jnp.where((queries.segment_ids != 0)[:, :, None, None], o, 0)


def _kernel(
    length: int, num_heads: int, spec: AttentionSpec, keys: TokenIndex, interpret: bool
) -> Callable[[Array, Array, Array, tuple[Array, Array]], Array]:
    """Returns the kernel as a function of q [B H T K], k, v and the queries' and keys' segments."""
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas  # a slow import

    shape, bounds = (length, length), spec.mask_bounds(keys)
    block = next(size for size in BLOCK_SIZES if length % size == 0)
    mask = pallas.FullMask(shape) if bounds == (None, None) else pallas.LocalMask(shape, bounds, 0)
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * num_heads),
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
        attn_logits_soft_cap=spec.softcap or None,
        interpret=interpret,
    )
    return jax.vmap(lambda q, k, v, segments: kernel(q, k, v, pallas.SegmentIds(*segments)))


def splash_unsupported_reason(
    q: Array, k: Array, v: Array, keys: TokenIndex, spec: AttentionSpec
) -> str | None:
    """Returns why splash cannot run this case, or None if it can."""
    left, right = spec.mask_bounds(keys)
    cases = {
        f"it needs a TPU, this is a {platform()}": platform() != "tpu",
        f"it takes float32 or bfloat16, not {q.dtype}": q.dtype not in (jnp.float32, jnp.bfloat16),
        "queries and keys must be one row": not spec.aligned or not q.shape[1],
        "a query must see itself": (left or 0) < 0 or (right or 0) < 0,
        "it supports no prefix": spec.causal and keys.is_prefix is not None,
    }
    return _first_reason(cases) or _common_unsupported_reason(q, k, v, keys, spec)


def cudnn(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    queries: TokenIndex,
    keys: TokenIndex,
    spec: AttentionSpec,
) -> Float[Array, "B T H K"]:
    """Computes flash attention by cuDNN, which reads a mask of visible keys.

    Causality is also an argument of the kernel, so that it skips the keys after a query.
    """

    def attend(q: Array, k: Array, v: Array, queries: TokenIndex, keys: TokenIndex) -> Array:
        visible = spec.visible(queries, keys)
        o = jax.nn.dot_product_attention(
            *(q, k, v),
            mask=visible[:, None],
            scale=spec.scale,
            is_causal=spec.mask_bounds(keys)[1] == 0,
            implementation="cudnn",
        )
        return jnp.where(jnp.any(visible, axis=-1)[:, :, None, None], o, 0)

    return _on_mesh(attend, q, k, v, queries, keys)


def cudnn_unsupported_reason(
    q: Array, k: Array, v: Array, keys: TokenIndex, spec: AttentionSpec
) -> str | None:
    """Returns why cuDNN cannot run this case, or None if it can."""
    (_, T, _, K), S, Kv = q.shape, k.shape[1], v.shape[-1]
    cases = {
        f"it needs an NVIDIA GPU, this is a {platform()}": not _is_nvidia(),
        "the GPU is absent, and so is cuDNN's library to compile for it (--extra cuda)": (
            not _has_cudnn()
        ),
        f"it takes bfloat16 or float16, not {q.dtype}": q.dtype not in (jnp.bfloat16, jnp.float16),
        f"heads must be multiples of 8 up to 128 wide, not {K}": K % 8 != 0 or K > 128,
        f"values must be as wide as keys, not {Kv} and {K}": Kv != K,
        f"lengths must be even, not {T} and {S}": T % 2 + S % 2 > 0 or not T * S,
        f"its mask of {T} x {S} would not fit": T * S > MAX_MASK_SIZE,
        "it has no softcap": spec.softcap != 0,
    }
    return _first_reason(cases) or _common_unsupported_reason(q, k, v, keys, spec)


def _common_unsupported_reason(
    q: Array, k: Array, v: Array, keys: TokenIndex, spec: AttentionSpec
) -> str | None:
    """Returns why neither kernel can run this case, or None if this does not rule them out."""
    H, G, model = q.shape[2], k.shape[2], auto_axes().get("model", 1)
    cases = {
        f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}": len({q.dtype, k.dtype, v.dtype}) > 1,
        f"mesh.model {model} does not divide {H} heads over {G}": H % math.lcm(G, model) > 0,
    }
    return spec.reason_not_plain(keys) or _first_reason(cases)


def _first_reason(cases: dict[str, bool]) -> str | None:
    return next((reason for reason, holds in cases.items() if holds), None)


def _is_nvidia() -> bool:
    """Returns whether the current mesh, else this machine, has NVIDIA GPUs."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return platform() == "gpu" and "NVIDIA" in device.device_kind


def _has_cudnn() -> bool:
    """Returns whether JAX can compile for cuDNN: a GPU is attached, or the library is installed."""
    if jax.default_backend() == "gpu":
        return True
    return all(importlib.util.find_spec(name) for name in ("nvidia", "nvidia.cudnn"))


def _on_mesh(
    attend: Callable[..., Array],
    q: Array,
    k: Array,
    v: Array,
    queries: TokenIndex,
    keys: TokenIndex,
) -> Array:
    """Runs `attend` on each device's batch rows and heads."""
    model = auto_axes().get("model", 1)
    copies = model // math.gcd(k.shape[2], model)  # of key heads, so that "model" divides them
    if copies > 1:
        k, v = jnp.repeat(k, copies, axis=2), jnp.repeat(v, copies, axis=2)
    batch = batch_axes(q.shape[0]) or None
    heads = "model" if model > 1 else None
    head_spec, token_spec = PS(batch, None, heads), PS(batch)
    specs = head_spec, head_spec, head_spec, token_spec, token_spec
    axes = tuple(auto_axes()) if math.prod(auto_axes().values()) > 1 else ()
    return map_shards(attend, axes, specs, head_spec)(q, k, v, queries, keys)
