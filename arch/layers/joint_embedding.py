"""The space in which images are compared with texts: CLIP's two projections and its temperature."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from arch.sharding import P, make_matrix, make_param

INITIAL_TEMPERATURE = 0.07  # arXiv:2103.00020, section 2.5


class JointEmbedding(nnx.Module):
    """Two matrices from vectors of images and of texts to `Z` numbers, and the log of a scale.

    Logits are exp(`log_scale`) times a cosine (CLIP, Radford et al., arXiv:2103.00020, figure 3).
    """

    def __init__(self, D_image: int, D_text: int, Z: int, *, key: Array):
        keys = jax.random.split(key)
        self.w_image = make_matrix(keys[0], (D_image, Z), P("data", "model"))
        self.w_text = make_matrix(keys[1], (D_text, Z), P("data", "model"))
        init = nnx.initializers.constant(-math.log(INITIAL_TEMPERATURE))
        self.log_scale = make_param(keys[0], (), P(), init, role="vector", decay=False)

    def embed_images(self, x: Float[Array, "B D"]) -> Float[Array, "B Z"]:
        """Projects the vectors of images, in at least float32."""
        return _project(x, self.w_image[...])

    def embed_texts(self, x: Float[Array, "B D"]) -> Float[Array, "B Z"]:
        """Projects the vectors of texts, in at least float32."""
        return _project(x, self.w_text[...])

    @staticmethod
    def params(D_image: int, D_text: int, Z: int) -> int:
        """Returns the number of parameters."""
        return (D_image + D_text) * Z + 1


def _project(x: Float[Array, "B D"], w: Float[Array, "D Z"]) -> Float[Array, "B Z"]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) @ w
