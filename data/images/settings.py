"""Settings of the images of a data set, and the record of one image with its text."""

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from errors import ConfigError
from settings.types import PositiveInt, config

MIN_SIZE = 16  # Pixels of a canvas on which four digits of 8 x 8 pixels can be drawn.


@config
class ImagesConfig:
    """The images of a data set, which are all brought to one size."""

    size: PositiveInt = 32  # Height and width in pixels that images are resized to.
    channels: Literal[1, 3] = 1  # Numbers per pixel: grey, or red, green and blue.
    # Treatment of images that are not square: cut the longer sides, add a border, or distort.
    fit: Literal["crop", "pad", "stretch"] = "crop"
    # Colour behind transparent pixels and of borders; "": transparency is refused, borders black.
    background: Literal["", "black", "white"] = ""
    field: str = "image"  # For images: name of the field with the file of the image.
    count: PositiveInt = 20000  # For digits: number of records for training.

    def check(self) -> None:
        """Checks that digits have room.

        Raises:
            ConfigError: if images are too small.
        """
        if self.size < MIN_SIZE:
            raise ConfigError(f"data.images.size {self.size} is too small; use {MIN_SIZE} or more")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of every image: height, width, channels."""
        return self.size, self.size, self.channels


@dataclass(frozen=True, eq=False)
class ImageText:
    """A record of an image and a text about it."""

    image: UInt8[np.ndarray, "height width channels"]
    text: str

    @functools.cached_property
    def image_hash(self) -> str:
        """The sha256 of the pixels, by which records are divided into splits."""
        return hashlib.sha256(self.image.tobytes()).hexdigest()
