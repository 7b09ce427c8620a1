"""Images as tokens: square patches, each a linear map of its pixels (ViT, arXiv:2010.11929).

An image is [height width channels]. Its patches are in reading order, behind a learned class token
if there is one, and each has a learned position. An image of 8-bit integers is normalized first,
(x / 255 - mean) / std; one of floating-point numbers is taken as it is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from arch.layers.linear import linear
from arch.layers.norms import Norm, NormConfig
from arch.part_cost import TermFlops
from arch.sharding import P, make_matrix, make_param, make_vector
from errors import ConfigError
from settings.types import NonNegativeInt, PositiveInt, config

ImagePooling = Literal["mean", "class", "attention"]
Projector = Literal["none", "linear", "mlp"]

# Standard deviation of embedded patches, positions and the class token at the start: positions
# count as much as content, and untrained blocks more than both.
INITIAL_STD = 0.1


@config
class VisionConfig:
    """The vision stack, which reads the patches of an image from both sides."""

    depth: NonNegativeInt = 0  # Number of layers of the vision stack; 0: the model reads no images.
    width: NonNegativeInt = 0  # Width of the vision stack; 0: the model's.
    # Pattern of mixer+channel blocks, repeated over the depth.
    layers: tuple[str, ...] = ("attention+mlp",)
    first_layers: tuple[str, ...] = ()  # Blocks before the pattern.
    # Settings of the vision stack's parts that differ from the model's, by section. Attention has
    # position_encoding none unless it is set here, because patches have learned positions.
    parts: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    image_size: PositiveInt = 32  # Height and width of an image in pixels.
    channels: PositiveInt = 1  # Numbers per pixel: 1 is grey, 3 is red, green and blue.
    patch_size: PositiveInt = 4  # Height and width of a patch in pixels.
    mean: tuple[float, ...] = (0.5,)  # Subtracted from pixels of 0 to 1, for all or each channel.
    std: tuple[float, ...] = (0.5,)  # Divides the pixels afterwards, for all or each channel.
    patch_bias: bool = True  # Add a bias to the embedded patches.
    class_token: bool = False  # Put a learned token before the patches (ViT).
    input_norm: bool = False  # Normalize the embedded patches (CLIP).
    final_norm: bool = True  # Apply a norm after the last block of the vision stack.
    # One vector per image: the mean of its patches, the class token, or attention to all tokens
    # from a learned query, with a channel behind it (SigLIP).
    pooling: ImagePooling = "mean"
    # Map of the patches into the text stack, where they replace the tokens with the id token_id:
    # no such map, a matrix, or two with a GELU between them (LLaVA).
    projector: Projector = "none"
    token_id: int = -1  # Token id whose positions hold the vectors of patches.
    # Width of the vectors by which images are compared with texts (CLIP); 0: none.
    embed_dim: NonNegativeInt = 0
    num_classes: NonNegativeInt = 0  # Number of class scores from an image's vector; 0: none.

    def check(self) -> None:
        """Checks the sizes of images and patches.

        Raises:
            ConfigError: if patches do not divide an image, or channels have no mean.
        """
        if self.image_size % self.patch_size:
            nearest = max(self.image_size // self.patch_size, 1) * self.patch_size
            raise ConfigError(
                f"vision.image_size {self.image_size} is not a multiple of vision.patch_size "
                f"{self.patch_size}; nearest valid value: {nearest}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ConfigError(
                    f"vision.{name} has {len(values)} numbers, must have 1 or vision.channels "
                    f"{self.channels}"
                )
        if 0 in self.std:
            raise ConfigError("vision.std has 0, which divides; use a positive number")
        if self.pooling == "class" and not self.class_token:
            raise ConfigError(
                "vision.pooling is 'class' without a class token; set vision.class_token=True"
            )

    @property
    def n_patches(self) -> int:
        """The number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def n_tokens(self) -> int:
        """The number of tokens of an image in the vision stack, the class token included."""
        return self.n_patches + self.class_token

    @property
    def n_prefix_tokens(self) -> int:
        """The number of positions that an image takes in the text stack; 0: it enters none."""
        return self.n_patches if self.depth and self.projector != "none" else 0


class PatchEmbedding(nnx.Module):
    """A module `patches(images) -> x` from pixels to the tokens of the vision stack."""

    def __init__(self, D: int, cfg: VisionConfig, norm: NormConfig, *, key: Array):
        keys, self.cfg = jax.random.split(key, 3), cfg
        pixels, init = cfg.channels * cfg.patch_size**2, nnx.initializers.normal(INITIAL_STD)
        self.w_in = make_matrix(keys[0], (pixels, D), P(None, "model"), INITIAL_STD)
        if cfg.patch_bias:
            self.b_in = make_vector(D, 0.0)
        if cfg.class_token:
            self.class_token = make_param(keys[1], (D,), P(None), init, role="vector", decay=False)
        self.positions = make_param(keys[2], (cfg.n_tokens, D), P(None, "data"), init)
        if cfg.input_norm:
            self.norm = Norm(D, norm)

    def __call__(
        self, images: Num[Array, "B height width channels"], dtype: jnp.dtype
    ) -> Float[Array, "B S D"]:
        """Embeds the patches of images, behind the class token, in `dtype`."""
        x = cut_patches(normalize_pixels(images, self.cfg, dtype), self.cfg.patch_size)
        x = linear(x, self.w_in[...], self.b_in[...] if self.cfg.patch_bias else None)
        if self.cfg.class_token:
            first = jnp.broadcast_to(self.class_token[...].astype(dtype), (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([first, x], axis=1)
        x = x + self.positions[...].astype(dtype)
        return self.norm(x) if self.cfg.input_norm else x

    @staticmethod
    def params(D: int, cfg: VisionConfig, norm: NormConfig) -> int:
        """Returns the number of parameters."""
        rows = cfg.channels * cfg.patch_size**2 + cfg.patch_bias + cfg.class_token + cfg.n_tokens
        return rows * D + cfg.input_norm * Norm.params(D, norm)

    @staticmethod
    def flops(D: int, cfg: VisionConfig) -> TermFlops:
        """Returns the FLOPs of all patches of an image."""
        flops = 2.0 * cfg.n_patches * cfg.channels * cfg.patch_size**2 * D
        return TermFlops(flops, flops)


def normalize_pixels(
    images: Num[Array, "B height width channels"],
    cfg: VisionConfig,
    dtype: jnp.dtype,
) -> Float[Array, "B height width channels"]:
    """Returns (x / 255 - mean) / std of 8-bit pixels; floating-point ones are cast alone."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(dtype)
    mean, std = (jnp.asarray(values, dtype) for values in (cfg.mean, cfg.std))
    return (images.astype(dtype) / 255 - mean) / std


def cut_patches(
    images: Float[Array, "B height width channels"], size: int
) -> Float[Array, "B S pixels"]:
    """Cuts images into square patches in reading order, each flattened from [channels y x]."""
    B, height, width, channels = images.shape
    rows, columns = height // size, width // size
    x = images.reshape(B, rows, size, columns, size, channels)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(B, rows * columns, channels * size * size)
