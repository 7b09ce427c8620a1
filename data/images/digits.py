"""Pictures of two to four handwritten digits with captions that name digits and places.

The digits are the 1,797 of 8 x 8 pixels that scikit-learn ships (Alpaydin & Kaynak 1998, UCI
repository, CC BY 4.0). Each stands somewhere in a quarter of a black canvas, enlarged. The caption
is written by rule in reading order, as "three top left, seven bottom right". A handwritten digit
occurs in one split only. All choices are functions of the split and the number of the record.
"""

import functools
import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from data.images.settings import ImagesConfig, ImageText
from data.packing import permutation, philox
from errors import ConfigError
from settings.json_types import JsonObject

VERSION = 1  # Rises if the same settings give other records.
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("top left", "top right", "bottom left", "bottom right")
MIN_DIGITS = 2  # The most is one for each quarter.
MAX_INTENSITY = 16  # Of a pixel in the source.
SPLITS = ("train", "valid", "test")
HELD_OUT_DIGITS = 250  # Handwritten digits of each held-out split.
HELD_OUT_RECORDS = 1000
DRAWING_STREAM = 6  # Random stream of drawings; no other purpose has this number.


def identity(cfg: ImagesConfig) -> JsonObject:
    """Returns what determines the records."""
    pixels, labels = load_digits()
    digest = hashlib.sha256(pixels.astype("<f4").tobytes() + labels.astype("<i4").tobytes())
    sizes = {"size": cfg.size, "channels": cfg.channels, "count": cfg.count}
    return {"digits": digest.hexdigest(), "version": VERSION, **sizes}


def iter_records(cfg: ImagesConfig) -> Iterator[tuple[str, ImageText]]:
    """Yields all records with their split."""
    order = permutation(0, 0, DRAWING_STREAM, len(load_digits()[1]))
    sources = {
        "valid": order[:HELD_OUT_DIGITS],
        "test": order[HELD_OUT_DIGITS : 2 * HELD_OUT_DIGITS],
        "train": order[2 * HELD_OUT_DIGITS :],
    }
    for number, split in enumerate(SPLITS, start=1):
        for index in range(cfg.count if split == "train" else HELD_OUT_RECORDS):
            yield split, draw(sources[split], cfg, number, index)


def draw(sources: np.ndarray, cfg: ImagesConfig, seed: int, index: int) -> ImageText:
    """Returns a record of digits among `sources`, a function of the arguments alone."""
    choices = iter(philox(seed, index, DRAWING_STREAM).random_raw(32).tolist())
    pixels, labels = load_digits()
    cell, names = cfg.size // 2, list[str]()
    canvas = np.zeros((cfg.size, cfg.size))
    n_digits = MIN_DIGITS + next(choices) % (len(PLACES) - MIN_DIGITS + 1)
    ranks = [next(choices) for _ in PLACES]
    for quarter in sorted(np.argsort(ranks)[:n_digits].tolist()):
        digit = sources[next(choices) % len(sources)]
        side = cell * 3 // 4 + next(choices) % (cell // 4 + 1)
        top, left = (next(choices) % (cell - side + 1) for _ in range(2))
        top, left = top + quarter // 2 * cell, left + quarter % 2 * cell
        canvas[top : top + side, left : left + side] = enlarge(pixels[digit], side)
        names.append(f"{WORDS[labels[digit]]} {PLACES[quarter]}")
    grey = np.round(canvas * (255 / MAX_INTENSITY)).astype(np.uint8)
    return ImageText(np.repeat(grey[..., None], cfg.channels, axis=-1), ", ".join(names))


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
