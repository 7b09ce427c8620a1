"""safetensors files, single or in shards, read a tensor at a time and checked before that.

A file is eight bytes (the length of a header), the header in JSON, the numbers. Nothing is mapped
into memory: reading a tensor costs the memory of that tensor. Other formats execute what they hold
and are refused.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
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
HEADER_LIMIT = 100 << 20  # bytes, as of the format's own library
SHARD = 5 << 30  # bytes of a file that is written
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OTHERS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.npz")


class Entry(NamedTuple):
    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file


def entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint by name; CheckpointError if a file is not whole."""
    index = folder / INDEX
    if index.is_file():
        return _sharded(folder, index)
    if (folder / SINGLE).is_file():
        return header(folder / SINGLE)
    other = next((p.name for pattern in OTHERS for p in sorted(folder.glob(pattern))), "")
    found = f"only {other}, which is not read" if other else "none"
    raise CheckpointError(
        f"{folder} has no {SINGLE} ({found}); give a folder with safetensors, or convert it"
    )


def read(entry: Entry) -> np.ndarray:
    """The numbers of one tensor."""
    try:
        with open(entry.path, "rb") as stream:
            stream.seek(entry.begin)
            found = np.fromfile(stream, entry.dtype, math.prod(entry.shape))
    except OSError as error:
        raise CheckpointError(f"{entry.path} cannot be read: {error.strerror}") from error
    if found.size != math.prod(entry.shape):
        raise CheckpointError(f"{entry.path} ends early; download it again")
    return found.reshape(entry.shape)


def read_file(path: Path) -> dict[str, np.ndarray]:
    """All of a small file."""
    return {name: read(entry) for name, entry in header(path).items()}


def header(path: Path) -> dict[str, Entry]:
    """The tensors of one file; their bytes must lie side by side up to its end."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise _damaged(path, f"its header says {length} bytes of a file of {size}")
            table = json.loads(stream.read(length))
        found = {n: _entry(path, e, 8 + length) for n, e in table.items() if n != "__metadata__"}
        bounds = sorted(tuple(e["data_offsets"]) for n, e in table.items() if n != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read ({error})") from error
    at = 0
    for begin, end in bounds:
        if begin != at or end < begin:
            raise _damaged(path, f"its tensors leave a gap or overlap at byte {at}")
        at = end
    if 8 + length + at != size:
        raise _damaged(path, f"it has {size} bytes, its header wants {8 + length + at}")
    return found


def write(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], limit: int = SHARD) -> None:
    """Write tensors as they come, in files of at most about `limit` bytes."""
    files: list[dict[str, Any]] = []
    held: dict[str, np.ndarray] = {}
    names: dict[str, int] = {}
    total = size = 0
    for name, tensor in tensors:
        if held and size + tensor.nbytes > limit:
            files.append(_written(folder / f"{len(files)}.part", held))
            held, size = {}, 0
        held[name], names[name] = tensor, len(files)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    files.append(_written(folder / f"{len(files)}.part", held))
    if len(files) == 1:
        os.replace(folder / "0.part", folder / SINGLE)
        return
    shard = "model-{:05d}-of-{:05d}.safetensors"
    for n in range(len(files)):
        os.replace(folder / f"{n}.part", folder / shard.format(n + 1, len(files)))
    weights = {name: shard.format(n + 1, len(files)) for name, n in names.items()}
    content = {"metadata": {"total_size": total}, "weight_map": weights}
    (folder / INDEX).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _written(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # what older readers ask for
    at = 0
    for name, tensor in tensors.items():
        shape, end = list(tensor.shape), at + tensor.nbytes
        table[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return table


def _entry(path: Path, told: Mapping[str, Any], start: int) -> Entry:
    shape, (begin, end) = tuple(told["shape"]), told["data_offsets"]
    if told["dtype"] not in DTYPES:
        raise _damaged(path, f"it holds {told['dtype']}; known: {', '.join(DTYPES)}")
    dtype = DTYPES[told["dtype"]]
    whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    if not whole or end - begin != math.prod(shape) * dtype.itemsize:
        raise _damaged(path, f"its header gives {end - begin} bytes to a tensor of {shape}")
    return Entry(path, dtype, shape, start + begin)


def _sharded(folder: Path, index: Path) -> dict[str, Entry]:
    try:
        names = json.loads(index.read_text("utf-8"))["weight_map"]
        shards = sorted(set(names.values()))
        inside = all(Path(shard).name == shard for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(index, f"it cannot be read ({error})") from error
    if not inside:
        raise _damaged(index, "it names files outside of its folder")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing)}; "
            "download them too"
        )
    found: dict[str, Entry] = {}
    for shard in shards:
        found |= header(folder / shard)
    wrong = sorted(n for n in {*names, *found} if n not in found or found[n].path.name != names[n])
    if wrong:
        raise _damaged(index, f"it and its shards disagree on {', '.join(wrong[:10])}")
    return found


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {why}; download it again")
