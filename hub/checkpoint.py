"""Converts a Hugging Face folder into a model and back, one parameter at a time."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from arch import Model, ModelConfig
from errors import CheckpointError
from hub import safetensors_io
from hub.family import HfFamily
from hub.name_binding import (
    MAX_LISTED_NAMES,
    VOCAB_PARAMS,
    BoundTensor,
    Leaf,
    hf_shape,
    resolve_name_map,
)
from hub.safetensors_io import TensorEntry
from hub.tensor_transforms import concat_fused, split_fused
from training import mesh as meshes
from training.checkpoint.param_names import named_leaves

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype("f4"),
    "float16": np.dtype("f2"),
    "bfloat16": jnp.dtype("bfloat16"),
}


def load_model(
    folder: Path, family: HfFamily, config: ModelConfig, mesh: Mesh | None = None
) -> Model:
    """Loads the parameters of a folder to `mesh`, by default to the first device."""
    abstract = jax.eval_shape(lambda: Model(config, key=jax.random.key(0)))
    leaves = named_leaves(abstract)
    shardings: dict[str, jax.sharding.Sharding | None] = dict.fromkeys(leaves)
    if mesh is not None:
        shardings = dict(
            zip(leaves, jax.tree.leaves(meshes.param_shardings(mesh, abstract)), strict=True)
        )
    bounds = resolve_name_map(config, abstract, family.name_map(config))
    expected = {name for bound in bounds for name in bound.hf_names}
    unused = family.unused_tensors(config)
    files = _match_names(safetensors_io.read_entries(folder), family, expected, unused)
    for duplicate, original in family.duplicated_tensors(config):
        if duplicate in files and duplicate not in expected:
            files.setdefault(original, files.pop(duplicate))
    _check_tensors(folder, family, files, bounds, config, leaves)
    arrays: dict[str, jax.Array] = {}
    for names, group in _group_by_leaves(bounds):
        buffers = {name: np.zeros(leaves[name].shape, leaves[name].dtype) for name in names}
        for bound in group:
            _fill_buffers(buffers, bound, files)
        for name in names:
            arrays[name] = _to_device(buffers.pop(name), shardings[name])
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in leaves])


def save_model(
    model: Model,
    config: ModelConfig,
    folder: Path,
    family: HfFamily,
    dtype: str,
    max_shard_bytes: int,
) -> None:
    """Writes the tensors of `model` under the names of `family`."""
    leaves, np_dtype = named_leaves(model), DTYPES[dtype]
    duplicated = family.duplicated_tensors(config)

    def iter_tensors() -> Iterator[tuple[str, np.ndarray]]:
        for bound in resolve_name_map(config, model, family.name_map(config)):
            parts = [
                _leaf_slice(leaves, index.leaf, index.repeat, config)
                for index in bound.leaf_indices
            ]
            per_expert = "{e}" in bound.tensor_map.hf_name
            rows = zip(*parts, strict=True) if per_expert else [parts]
            for name, row in zip(bound.hf_names, rows, strict=True):
                fused = concat_fused(list(row), bound.tensor_map)
                tensor = bound.tensor_map.transform.to_hf(fused)
                tensor = np.asarray(tensor.astype(np_dtype), order="C")
                copies = [copy for copy, original in duplicated if original == name]
                # The class of a bare encoder has names without the prefix.
                yield from ((family.saved_name(n, config), tensor) for n in (name, *copies))

    safetensors_io.write_shards(folder, iter_tensors(), max_shard_bytes)


def with_dtype(config: ModelConfig, dtype: str) -> ModelConfig:
    """Returns the same config with another compute dtype."""
    return dataclasses.replace(config, dtype=dtype)  # type: ignore[arg-type]


def _match_names(
    files: dict[str, TensorEntry],
    family: HfFamily,
    expected: set[str],
    unused: tuple[str, ...] = (),
) -> dict[str, TensorEntry]:
    """Returns the entries under the names of the name map, without buffers.

    Raises:
        CheckpointError: if two tensors have one name, or tied tensors differ.
    """
    entries: dict[str, TensorEntry] = {}
    valid_names = {*expected, *dict(family.tied_tensors)}
    for file_name, entry in files.items():
        name = file_name
        for pattern, replacement in family.renames:
            name = re.sub(pattern, replacement, name)
        if any(re.fullmatch(pattern, name) for pattern in (*family.ignored_tensors, *unused)):
            continue
        if name not in valid_names and family.prefix + name in valid_names:
            name = family.prefix + name
        if name in entries:
            raise CheckpointError(f"{entry.path} has {name} under two names; remove one")
        entries[name] = entry
    for copy, original in family.tied_tensors:
        if copy in entries and copy not in expected and original in expected:
            entry = entries.pop(copy)
            if not _tensors_equal(entries.setdefault(original, entry), entry):
                raise CheckpointError(
                    f"{entry.path}: {copy} and {original} must be equal, and they differ; if they "
                    "are two parameters, set tie_word_embeddings to false in config.json"
                )
    return entries


def _check_tensors(
    folder: Path,
    family: HfFamily,
    files: dict[str, TensorEntry],
    bounds: list[BoundTensor],
    config: ModelConfig,
    leaves: Mapping[str, Leaf],
) -> None:
    """Checks names, shapes and dtypes of all tensors before any is read.

    Raises:
        CheckpointError: if tensors do not fit; the message names them.
    """
    shapes = {name: hf_shape(b, config, leaves) for b in bounds for name in b.hf_names}
    misshapen = [
        f"{n} {list(files[n].shape)}, must be {list(shapes[n])}"
        for n in shapes
        if n in files and files[n].shape != shapes[n]
    ]
    groups = {
        "missing": sorted(set(shapes) - set(files)),
        "not known": sorted(set(files) - set(shapes)),
        "of another shape": misshapen,
        "not floating point": [n for n in shapes if n in files and files[n].dtype.kind in "iub"],
    }
    problems = []
    for label, names in groups.items():
        if names:
            dots = " ..." if len(names) > MAX_LISTED_NAMES else ""
            problems.append(f"{len(names)} {label}: {', '.join(names[:MAX_LISTED_NAMES])}{dots}")
    if problems:
        raise CheckpointError(
            f"{folder}: the tensors are not those of the {family.model_type} in config.json: "
            f"{'; '.join(problems)}; use the config and the weights of one model"
        )


def _group_by_leaves(bounds: list[BoundTensor]) -> Iterator[tuple[list[str], list[BoundTensor]]]:
    """Groups the tensors that fill the same leaves, so that one group at a time is in memory."""
    groups: list[tuple[set[str], list[BoundTensor]]] = []
    for bound in bounds:
        leaves = {index.leaf for index in bound.leaf_indices}
        if groups and groups[-1][0] & leaves:
            groups[-1][0].update(leaves)
            groups[-1][1].append(bound)
        else:
            groups.append((leaves, [bound]))
    merged: list[tuple[set[str], list[BoundTensor]]] = []
    for leaves, tensors in groups:
        overlapping = next((group for group in merged if group[0] & leaves), None)
        if overlapping is None:
            merged.append((set(leaves), list(tensors)))
        else:
            overlapping[0].update(leaves)
            overlapping[1].extend(tensors)
    for leaves, tensors in merged:
        yield sorted(leaves), tensors


def _fill_buffers(
    buffers: dict[str, np.ndarray], bound: BoundTensor, files: dict[str, TensorEntry]
) -> None:
    per_expert = "{e}" in bound.tensor_map.hf_name
    for expert, name in enumerate(bound.hf_names):
        tensor = bound.tensor_map.transform.from_hf(safetensors_io.read_tensor(files[name]))
        parts = split_fused(tensor, bound.tensor_map)
        for index, part in zip(bound.leaf_indices, parts, strict=True):
            target = buffers[index.leaf]
            target = target if index.repeat < 0 else target[index.repeat]
            target = target[expert] if per_expert else target
            rows = tuple(slice(n) for n in part.shape[:1])  # a padded vocabulary has more rows
            target[rows] = part


def _leaf_slice(
    leaves: Mapping[str, jax.Array], name: str, repeat: int, config: ModelConfig
) -> np.ndarray:
    leaf = np.asarray(leaves[name] if repeat < 0 else leaves[name][repeat])
    return leaf[: config.vocab_size] if name in VOCAB_PARAMS else leaf


def _to_device(buffer: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None:
        return jnp.asarray(buffer)
    return jax.make_array_from_callback(buffer.shape, sharding, lambda index: buffer[index])


def _tensors_equal(a: TensorEntry, b: TensorEntry) -> bool:
    return a == b or (
        a.shape == b.shape
        and np.array_equal(safetensors_io.read_tensor(a), safetensors_io.read_tensor(b))
    )
