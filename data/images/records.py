"""Records of images and texts in JSON lines: `{"image": "a.png", "text": "a cat"}`.

The image is a file, named from the folder of the JSON lines on: PNG, JPEG, or an array of numpy
(.npy, .npz), of which `index` may select one of several images.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from data.images.decode import ImageError, load_image
from data.images.settings import ImagesConfig, ImageText
from data.readers import input_files, json_lines, read_policy, read_stats
from settings.json_types import JsonObject

INDEX_FIELD = "index"


def read_image_texts(
    path: Path, policy: read_policy.ErrorPolicy, cfg: ImagesConfig, text_field: str
) -> Iterator[ImageText]:
    """Yields the records of a file; what cannot be used is reported by file, line and reason."""
    for offset, _, record in json_lines.iter_json(path, policy):
        location = read_policy.format_location(path, offset)
        reason = _problem(record, cfg.field, text_field)
        if reason:
            policy.reject_document(f"{location} {reason}")
            continue
        text = policy.check_unicode(record[text_field], location)
        if text is None:
            continue
        name = record[cfg.field]
        try:
            image = load_image(path.parent / name, record.get(INDEX_FIELD), cfg)
        except ImageError as error:
            policy.reject_document(f"{location}: the image {name!r} is refused: {error}")
            continue
        yield ImageText(image, text)


def identity(paths: tuple[str, ...], cfg: ImagesConfig, text_field: str) -> JsonObject:
    """Returns what determines the records besides the files of JSON lines under `paths`."""
    files = [file for path in paths if path for file in input_files.find_files(path)[0]]
    settings = {"text_field": text_field, "images": dataclasses.asdict(cfg)}
    return settings | {"image_files": hash_image_files(files, cfg)}


def hash_image_files(files: list[Path], cfg: ImagesConfig) -> str:
    """Returns a hash of names, sizes and times of the images of these files, to see changes."""
    digest = hashlib.sha256()
    policy = read_policy.ErrorPolicy("skip", "train", read_stats.ReadStats(warns=False))
    for path in files:
        names = {
            record[cfg.field]
            for _, _, record in json_lines.iter_json(path, policy)
            if isinstance(record.get(cfg.field), str)
        }
        for name in sorted(names):
            try:
                status = (path.parent / name).stat()
            except (OSError, ValueError):
                continue  # Reading reports it with its line.
            digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()


def _problem(record: JsonObject, image_field: str, text_field: str) -> str:
    """Returns why a record cannot be used, "" if it can."""
    name, text, index = (record.get(key) for key in (image_field, text_field, INDEX_FIELD))
    fields = ", ".join(list(record)[:8])
    if not isinstance(name, str) or not name or "\0" in name:
        return f"names no image under {image_field!r}; it holds: {fields}; set data.images.field"
    if not isinstance(text, str) or not text.strip():
        return (
            f"has the image {name!r} without a text under {text_field!r}; add it, or set "
            "data.on_error to skip"
        )
    if index is not None and type(index) is not int:
        return f"has {index!r} under {INDEX_FIELD!r}, must be a number of an image in the array"
    return ""
