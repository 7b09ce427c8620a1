"""Pictures of two to four handwritten digits with captions that name digits and places.

The digits are the 1,797 of 8 x 8 pixels that scikit-learn ships (Alpaydin & Kaynak 1998, UCI
repository, CC BY 4.0). Each stands somewhere in a quarter of a black canvas, enlarged. The caption
is written by rule in reading order, as "three top left, seven bottom right". A handwritten digit
occurs in one split only, and so does a caption: a tenth of the 14,600 combinations of digits and
places is reserved for each held-out split. All choices are functions of the split and the number of
the record.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from data.images.settings import ImagesConfig, ImageText
from data.random_streams import RandomStream, permutation, philox
from errors import ConfigError
from settings.json_types import JsonObject

VERSION = 2  # Rises if the same settings give other records.
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("top left", "top right", "bottom left", "bottom right")
MIN_DIGITS = 2  # The most is one for each quarter.
MAX_INTENSITY = 16  # Of a pixel in the source.
SPLITS = ("train", "valid", "test")
HELD_OUT_DIGITS = 250  # Handwritten digits of each held-out split.
HELD_OUT_RECORDS = 1000
HELD_OUT_TENTHS = {0: "valid", 1: "test"}  # Splits of the tenths of the hashes of captions.


def identity(cfg: ImagesConfig) -> JsonObject:
    """Returns what determines the records."""
    pixels, labels = load_digits()
    digest = hashlib.sha256(pixels.astype("<f4").tobytes() + labels.astype("<i4").tobytes())
    sizes = {"size": cfg.size, "channels": cfg.channels, "count": cfg.count}
    return {"digits": digest.hexdigest(), "version": VERSION, **sizes}


def iter_records(cfg: ImagesConfig) -> Iterator[tuple[str, ImageText]]:
    """Yields all records with their split."""
    order = permutation(0, 0, RandomStream.DRAWINGS, len(load_digits()[1]))
    sources = {
        "valid": order[:HELD_OUT_DIGITS],
        "test": order[HELD_OUT_DIGITS : 2 * HELD_OUT_DIGITS],
        "train": order[2 * HELD_OUT_DIGITS :],
    }
    for split in SPLITS:
        for index in range(cfg.count if split == "train" else HELD_OUT_RECORDS):
            yield split, draw(sources[split], cfg, split, index)


def caption_split(caption: str) -> str:
    """Returns the only split in which a caption occurs."""
    digest = hashlib.sha256(caption.encode()).digest()
    return HELD_OUT_TENTHS.get(int.from_bytes(digest[:8]) % 10, "train")


def draw(sources: np.ndarray, cfg: ImagesConfig, split: str, index: int) -> ImageText:
    """Returns a record of digits among `sources`, a function of the arguments alone."""
    random = philox(SPLITS.index(split) + 1, index, RandomStream.DRAWINGS)
    digits = _choose_digits(sources, random)
    while caption_split(_caption(digits)) != split:
        digits = _choose_digits(sources, random)
    pixels, cell = load_digits()[0], cfg.size // 2
    canvas = np.zeros((cfg.size, cfg.size))
    for quarter, digit in digits.items():
        choices = random.random_raw(3).tolist()
        side = cell * 3 // 4 + choices[0] % (cell // 4 + 1)
        top = choices[1] % (cell - side + 1) + quarter // 2 * cell
        left = choices[2] % (cell - side + 1) + quarter % 2 * cell
        canvas[top : top + side, left : left + side] = enlarge(pixels[digit], side)
    grey = np.round(canvas * (255 / MAX_INTENSITY)).astype(np.uint8)
    return ImageText(np.repeat(grey[..., None], cfg.channels, axis=-1), _caption(digits))


def _choose_digits(sources: np.ndarray, random: np.random.Philox) -> dict[int, int]:
    """Returns the handwritten digit of each quarter that has one, in reading order."""
    n_digits = MIN_DIGITS + random.random_raw() % (len(PLACES) - MIN_DIGITS + 1)
    quarters = np.argsort(random.random_raw(len(PLACES)))[:n_digits]
    return {
        quarter: int(sources[random.random_raw() % len(sources)])
        for quarter in sorted(quarters.tolist())
    }


def _caption(digits: Mapping[int, int]) -> str:
    """Returns the digits and their places in words."""
    labels = load_digits()[1]
    return ", ".join(f"{WORDS[labels[digit]]} {PLACES[i]}" for i, digit in digits.items())


def enlarge(image: Float[np.ndarray, "n n"], side: int) -> Float[np.ndarray, "side side"]:
    """Returns a square image of another size, by linear interpolation between its pixels."""
    n = len(image)
    position = np.clip((np.arange(side) + 0.5) * n / side - 0.5, 0, n - 1)
    weights = np.maximum(1 - np.abs(position[:, None] - np.arange(n)), 0)
    enlarged: np.ndarray = weights @ image @ weights.T
    return enlarged


@functools.cache
def load_digits() -> tuple[Float[np.ndarray, "N 8 8"], np.ndarray]:
    """Returns the handwritten digits of scikit-learn and their labels.

    Raises:
        ConfigError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ConfigError(
            "data.source digits needs the package scikit-learn; install the extra: "
            "pip install 'isoflop[images]'"
        ) from error
    digits = datasets.load_digits()
    return digits.images, digits.target
