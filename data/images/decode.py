"""Decoding of images: PNG and JPEG files by Pillow, arrays of numpy, with limits and reasons.

Every image becomes 8-bit pixels of one size. What would change its meaning without a word is
refused: 16-bit numbers lose precision, transparent pixels have no colour. The orientation that a
camera wrote into a JPEG (EXIF) is applied. Sizes are checked before pixels are decoded, because a
small file can hold an enormous image.
"""

import struct
import types
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8

from data.images.settings import ImagesConfig
from errors import ConfigError

MAX_PIXELS = 1 << 26  # Pixels of an image before it is resized.
MAX_ARRAY_BYTES = 1 << 34  # Bytes of an array in a .npz file, which is read as a whole.
ARRAY_SUFFIXES = (".npy", ".npz")
PNG_SIGNATURE, BIT_DEPTH_OFFSET = b"\x89PNG\r\n\x1a\n", 24
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Modes of Pillow of over 8 bits.
# What Pillow and numpy raise for damaged files.
DECODE_ERRORS = (
    *(OSError, EOFError, ValueError, SyntaxError, TypeError, KeyError, IndexError),
    *(OverflowError, ZeroDivisionError, struct.error, zlib.error, zipfile.BadZipFile, Warning),
)


class ImageError(ValueError):
    """An image cannot be used; the message is the reason."""


def load_image(
    path: Path, index: int | None, cfg: ImagesConfig
) -> UInt8[np.ndarray, "height width channels"]:
    """Returns the image in a file, resized as `cfg` says.

    Args:
        path: A PNG or JPEG file, or a .npy or .npz file of 8-bit numbers or fractions of 1.
        index: The number of the image in an array of images; None: the array is one image.
        cfg: The settings of images.

    Raises:
        ImageError: if the file is missing, damaged, too large, 16-bit or transparent.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if path.suffix.lower() in ARRAY_SUFFIXES:
                return _from_array(_read_array(path, index), cfg)
            return _from_file(path, index, cfg)
    except ImageError:
        raise
    except DECODE_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"it cannot be decoded ({reason or type(error).__name__})") from error


def _from_file(path: Path, index: int | None, cfg: ImagesConfig) -> np.ndarray:
    image_module = require_pillow()
    if index is not None:
        raise ImageError(f"it has an index, {index}, but is no array; leave index out")
    with path.open("rb") as file:
        header = file.read(BIT_DEPTH_OFFSET + 1)
    # Pillow reduces colours of 16 bits without a word.
    if header.startswith(PNG_SIGNATURE) and header[BIT_DEPTH_OFFSET:] == b"\x10":
        raise ImageError("it has 16 bits per number; convert it to 8")
    try:
        with image_module.open(path, formats=("PNG", "JPEG")) as image:
            _check_pixels(*image.size)
            if image.format == "PNG" and image.n_frames > 1:
                raise ImageError(f"it is an animation of {image.n_frames} frames; extract one")
            image.load()
            return _to_pixels(_upright(image), cfg)
    except (image_module.DecompressionBombError, image_module.DecompressionBombWarning) as error:
        raise ImageError(f"it has more than {MAX_PIXELS:,} pixels; shrink it") from error
    except image_module.UnidentifiedImageError as error:
        raise ImageError("it is neither a PNG nor a JPEG file; convert it") from error


def _read_array(path: Path, index: int | None) -> np.ndarray:
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if len(members) != 1:
            raise ImageError(f"it holds {len(members)} arrays, must hold one")
        if members[0].file_size > MAX_ARRAY_BYTES:
            raise ImageError(f"it unpacks to {members[0].file_size:,} bytes; use .npy files")
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[arrays.files[0]]
    else:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if index is None:
        return array
    if not array.ndim or not 0 <= index < len(array):
        size = len(array) if array.ndim else 0
        raise ImageError(f"it has {size} images, none with index {index}; count from 0")
    return array[index]


def _from_array(array: Num[np.ndarray, "..."], cfg: ImagesConfig) -> np.ndarray:
    """Returns the pixels of an array [height width] or [height width channels].

    Raises:
        ImageError: if shape, size or numbers are not those of an image.
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"its shape is {array.shape}, must be (height, width) or (height, width, 1, 3 or 4); "
            "give index for one of several images"
        )
    _check_pixels(*array.shape[:2])
    if np.issubdtype(array.dtype, np.floating):
        if not np.all((array >= 0) & (array <= 1)):
            raise ImageError("its fractions are not between 0 and 1; divide by the largest")
        array = np.round(np.asarray(array, np.float64) * 255)
    elif array.dtype != np.uint8:
        raise ImageError(f"its dtype is {array.dtype}, must be uint8 or fractions of 1")
    array = np.ascontiguousarray(array, np.uint8)
    array = array[..., 0] if array.ndim == 3 and channels == 1 else array
    if array.shape[:2] == cfg.shape[:2] and channels == cfg.channels:
        return array.reshape(cfg.shape)
    return _to_pixels(require_pillow().fromarray(array), cfg)


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"it is {width} x {height}, at most {MAX_PIXELS:,} pixels; shrink it")


def _upright(image):  # type: ignore[no-untyped-def]  # Pillow is an extra
    """Returns the image as its camera was held."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _to_pixels(image, cfg: ImagesConfig) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Returns an image of Pillow as 8-bit pixels of the configured size.

    Raises:
        ImageError: if numbers have more than 8 bits, or pixels are transparent.
    """
    from PIL import Image, ImageOps

    if image.mode in WIDE_MODES:
        raise ImageError(f"it has more than 8 bits per number ({image.mode}); convert it to 8")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            if not cfg.background:
                raise ImageError(
                    "it has transparent pixels; remove them, or set data.images.background"
                )
            canvas = Image.new("RGBA", image.size, cfg.background)
            image = Image.alpha_composite(canvas, image)
    image = image.convert("L" if cfg.channels == 1 else "RGB")
    size = cfg.size, cfg.size
    if image.size != size:
        method = Image.Resampling.BICUBIC
        if cfg.fit == "stretch":
            image = image.resize(size, method)
        elif cfg.fit == "crop":
            image = ImageOps.fit(image, size, method)
        else:
            image = ImageOps.pad(image, size, method, color=cfg.background or "black")
    return np.asarray(image, np.uint8).reshape(cfg.shape)


def require_pillow() -> types.ModuleType:
    """Returns Pillow's module of images.

    Raises:
        ConfigError: if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(
            "images need the package Pillow; install the extra: pip install 'isoflop[images]'"
        ) from error
    return Image
