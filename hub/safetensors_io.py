"""Reads and writes safetensors files, single or in shards, one tensor at a time.

A file consists of the length of its header (eight bytes), the header in JSON, and the numbers. The
header is checked before any tensor is read. Files are not mapped into memory, so that reading a
tensor takes the memory of that tensor. Other formats can execute code and are refused.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from errors import CheckpointError
from settings.json_files import read_json_object
from settings.json_types import JsonObject

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
MAX_HEADER_BYTES = 100 << 20  # bytes; the limit of the safetensors library
MAX_FILE_NAME = 255  # bytes of the name of a file
MAX_SHARD_BYTES = 5 << 30  # bytes of one written file
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
UNSUPPORTED_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.npz")


class TensorEntry(NamedTuple):
    """The location of one tensor in a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file


def read_entries(folder: Path) -> dict[str, TensorEntry]:
    """Returns the location of every tensor of a checkpoint by name.

    Raises:
        CheckpointError: if there are no safetensors, or a file is damaged or missing.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        return _read_sharded_entries(folder, index)
    if (folder / SINGLE_FILE).is_file():
        return read_header(folder / SINGLE_FILE)
    unsupported = next(
        (p.name for pattern in UNSUPPORTED_PATTERNS for p in sorted(folder.glob(pattern))), ""
    )
    content = f"only {unsupported}, which is not read" if unsupported else "no weights"
    raise CheckpointError(
        f"{folder} has no {SINGLE_FILE} ({content}); give a folder with safetensors, or convert it"
    )


def read_tensor(entry: TensorEntry) -> np.ndarray:
    """Reads one tensor.

    Raises:
        CheckpointError: if the file cannot be read or ends early.
    """
    try:
        with open(entry.path, "rb") as stream:
            stream.seek(entry.offset)
            numbers = np.fromfile(stream, entry.dtype, math.prod(entry.shape))
    except OSError as error:
        raise CheckpointError(f"{entry.path} cannot be read: {error.strerror}") from error
    if numbers.size != math.prod(entry.shape):
        raise CheckpointError(f"{entry.path} ends early; download it again")
    return numbers.reshape(entry.shape)


def read_file(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a small file."""
    return {name: read_tensor(entry) for name, entry in read_header(path).items()}


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Reads the header of one file and checks that its tensors cover the file without gaps.

    Raises:
        CheckpointError: if the file is damaged.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    _damage_message(path, f"its header claims {length} bytes of a file of {size}")
                )
            table = json.loads(stream.read(length))
        entries = {
            n: _parse_entry(path, e, 8 + length) for n, e in table.items() if n != "__metadata__"
        }
        bounds = sorted(tuple(e["data_offsets"]) for n, e in table.items() if n != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            _damage_message(path, f"its header cannot be read ({error})")
        ) from error
    position = 0
    for begin, end in bounds:
        if begin != position or end < begin:
            raise CheckpointError(
                _damage_message(path, f"its tensors leave a gap or overlap at byte {position}")
            )
        position = end
    expected = 8 + length + position
    if expected != size:
        raise CheckpointError(
            _damage_message(path, f"it has {size} bytes, and its header requires {expected}")
        )
    return entries


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes tensors in the order in which they are given, in files of limited size.

    A file exceeds `max_shard_bytes` only if one tensor does. At most one file is in memory. One
    shard alone becomes model.safetensors.
    """
    files: list[JsonObject] = []
    shard_tensors: dict[str, np.ndarray] = {}
    names: dict[str, int] = {}
    total = size = 0
    for name, tensor in tensors:
        if shard_tensors and size + tensor.nbytes > max_shard_bytes:
            files.append(_write_file(folder / f"{len(files)}.part", shard_tensors))
            shard_tensors, size = {}, 0
        shard_tensors[name], names[name] = tensor, len(files)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    files.append(_write_file(folder / f"{len(files)}.part", shard_tensors))
    if len(files) == 1:
        os.replace(folder / "0.part", folder / SINGLE_FILE)
        return
    shard = "model-{:05d}-of-{:05d}.safetensors"
    for n in range(len(files)):
        os.replace(folder / f"{n}.part", folder / shard.format(n + 1, len(files)))
    weights = {name: shard.format(n + 1, len(files)) for name, n in names.items()}
    content = {"metadata": {"total_size": total}, "weight_map": weights}
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> JsonObject:
    names = {dtype: name for name, dtype in DTYPES.items()}
    table: JsonObject = {"__metadata__": {"format": "pt"}}  # older readers require it
    begin = 0
    for name, tensor in tensors.items():
        shape, end = list(tensor.shape), begin + tensor.nbytes
        table[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return table


def _parse_entry(path: Path, info: JsonObject, start: int) -> TensorEntry:
    shape, (begin, end) = tuple(info["shape"]), info["data_offsets"]
    if info["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{path} has a tensor of dtype {str(info['dtype'])[:40]}, which is not read (known: "
            f"{', '.join(DTYPES)}); convert the weights, quantized ones to BF16"
        )
    dtype = DTYPES[info["dtype"]]
    is_valid = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    if not is_valid or end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            _damage_message(path, f"its header gives {end - begin} bytes to a tensor of {shape}")
        )
    return TensorEntry(path, dtype, shape, start + begin)


def _read_sharded_entries(folder: Path, index: Path) -> dict[str, TensorEntry]:
    try:
        names = read_json_object(index)["weight_map"]
        shards = sorted(set(names.values()))
        is_inside = all(
            Path(shard).name == shard and len(shard.encode()) <= MAX_FILE_NAME for shard in shards
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(_damage_message(index, f"it cannot be read ({error})")) from error
    if not is_inside:
        raise CheckpointError(
            _damage_message(index, "it names files outside of its folder, or too long")
        )
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing)}; "
            "download them too"
        )
    entries: dict[str, TensorEntry] = {}
    for shard in shards:
        entries |= read_header(folder / shard)
    wrong = sorted(
        n for n in {*names, *entries} if n not in entries or entries[n].path.name != names[n]
    )
    if wrong:
        raise CheckpointError(
            _damage_message(index, f"it and its shards disagree on {', '.join(wrong[:10])}")
        )
    return entries


def _damage_message(path: Path, why: str) -> str:
    return f"{path} is damaged: {why}; download it again"
