"""The decay of forgetting attention (FoX, Lin et al., arXiv:2503.02130).

    score_ij += sum of log_f_l over l = j + 1 .. i

Key j is forgotten by the gates of all tokens after it up to query i; its own gate does not act on
it. The sum is a difference of cumulative sums c_i - c_j, so that no T x S array of sums is built.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ops.attention.mask import first_tokens

QUANTUM = 2.0**-7  # Sums of multiples of it are exact in float32 up to 2^17.


def cumulative_log_decay(
    log_f: Float[Array, "B T H"], segment_ids: Int[Array, "B T"]
) -> Float[Array, "B T H 2"]:
    """Returns the cumulative sums in each document, as two summands with accurate differences.

    The first summand adds up multiples of `QUANTUM`, exactly while it is below 2^24 of them. The
    second adds up the rests, which are small. One sum alone would lose the digits of late, weak
    gates after early, strong ones. Padding does not forget.
    """
    log_f = log_f.astype(jnp.promote_types(log_f.dtype, jnp.float32))
    log_f = jnp.where((segment_ids != 0)[:, :, None], log_f, 0)
    coarse = jax.lax.stop_gradient(jnp.round(log_f / QUANTUM) * QUANTUM)
    summands = jnp.stack([coarse, log_f - coarse], axis=-1)
    is_first = jnp.broadcast_to(first_tokens(segment_ids)[:, :, None, None], summands.shape)

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, is_first_a), (b, is_first_b) = left, right
        return jnp.where(is_first_b, b, a + b), is_first_a | is_first_b

    return jax.lax.associative_scan(add, (summands, is_first), axis=1)[0]
