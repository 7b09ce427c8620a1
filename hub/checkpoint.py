"""Converts a Hugging Face folder into a model and back, one parameter at a time."""

import dataclasses
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from arch import Model, ModelConfig
from arch.sequence import View
from data.tokenizers import TOKENIZER_FILE as TOKENIZER
from data.tokenizers import Tokenizer, open_tokenizer
from errors import CheckpointError, ConfigError
from hub import safetensors_io
from hub.config_equivalence import differences
from hub.config_limits import check_limits
from hub.families import FAMILIES, OLD_MODEL_TYPES
from hub.family import HfFamily
from hub.hf_config import CONFIG_FILE, HfConfig, read_config
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
from settings.json_types import JsonObject
from settings.types import did_you_mean
from training import mesh as meshes
from training.checkpoint.param_names import named_leaves
from training.text_reading import unused_rows

LOG = logging.getLogger(__name__)
VIEW_OF_TASK: dict[str, View] = {
    "causal": "causal",
    "masked": "bidirectional",
}  # families without an encoder
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype("f4"),
    "float16": np.dtype("f2"),
    "bfloat16": jnp.dtype("bfloat16"),
}


def detect_family(folder: Path, *, without_weights: bool = False) -> tuple[HfFamily, ModelConfig]:
    """Returns the family of a folder and the model config that its config.json describes.

    If `without_weights`, the folder need not have safetensors. What only their names tell is then
    what most models of the family have: a BERT has the head of its pre-training, but no pooler.

    Raises:
        ConfigError: if the family or one of its options is not implemented.
        CheckpointError: if config.json is damaged, or does not belong to the weights.
    """
    values = read_config(folder)
    path = folder / CONFIG_FILE
    model_type = values.get("model_type")
    if isinstance(model_type, str) and model_type in OLD_MODEL_TYPES:
        model_type = OLD_MODEL_TYPES[model_type]
        values = FAMILIES[model_type].from_old(values) | {"model_type": model_type}
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"{path}: model_type {repr(model_type)[:60]} is not known; known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    tensors = None if without_weights else safetensors_io.read_entries(folder)
    check_limits(values, str(path), tensors)
    hf = HfConfig(values, str(path), tensors, family.hf_defaults)
    try:
        config = family.read(hf)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path} is not a valid config of {model_type} ({why}); correct it"
        ) from error
    hf.check_all_read()
    return family, config


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
    files = _match_names(safetensors_io.read_entries(folder), family, expected)
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
                tensor = np.ascontiguousarray(tensor.astype(np_dtype))
                copies = [copy for copy, original in duplicated if original == name]
                # The class of a bare encoder has names without the prefix.
                yield from ((family.saved_name(n, config), tensor) for n in (name, *copies))

    safetensors_io.write_shards(folder, iter_tensors(), max_shard_bytes)


def find_export_family(
    config: ModelConfig,
    family_name: str = "",
    views: Collection[str] = (),
    pad_id: int | None = None,
) -> tuple[HfFamily, JsonObject]:
    """Finds the first family that computes the same function as `config`.

    Args:
        config: the model to export.
        family_name: the only family to try; by default all, in the order of `FAMILIES`.
        views: if given, a family without an encoder must read its rows in one of these views.
        pad_id: if given, the id of the tokenizer's padding (-1: no padding), which must agree with
            the way in which the family numbers positions.

    Returns:
        The family, and the keys of its config.json.

    Raises:
        ConfigError: if there is none; the message has the differences to the closest family.
    """
    if family_name and family_name not in FAMILIES:
        raise ConfigError(
            f"family {family_name!r} is not known; {did_you_mean(family_name, FAMILIES)}"
        )
    closest: tuple[int, str] | None = None
    config = config.as_standard()
    abstract = jax.eval_shape(lambda: Model(config, key=jax.random.key(0)))
    for family in [FAMILIES[family_name]] if family_name else FAMILIES.values():
        try:
            keys = family.write(config)
            bounds = resolve_name_map(config, abstract, family.name_map(config))
            names = [name for bound in bounds for name in bound.hf_names]
            values = {"model_type": family.model_type, **keys}
            reread = family.read(HfConfig(values, CONFIG_FILE, names, family.hf_defaults))
            mismatches = differences(config, reread) + family.unsupported(config)
            mismatches += _view_mismatches(family, views)
            if family.position_numbering == "ids" and pad_id not in (None, keys["pad_token_id"]):
                mismatches.append(
                    f"the tokenizer's padding {pad_id}, which must be {keys['pad_token_id']}, "
                    "one below model.positions.offset"
                )
        except (LookupError, ConfigError, CheckpointError):
            continue
        if not mismatches:
            return family, keys
        message = f"{family.model_type} would differ in {'; '.join(mismatches[:3])}"
        closest = min(closest or (len(mismatches), message), (len(mismatches), message))
    why = closest[1] if closest else "no family has all of its parts"
    raise ConfigError(f"no family computes the same as this model: {why}; train a model that fits")


def _view_mismatches(family: HfFamily, views: Collection[str]) -> list[str]:
    view = VIEW_OF_TASK.get(family.task)
    if not views or view is None or view in views:
        return []
    return [f"the view {', '.join(views)}, not {view}"]


def load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    """Loads the tokenizer next to the weights, None if there is none.

    The log names files that contradict each other, and which one is followed.

    Raises:
        CheckpointError: if the tokenizer belongs to another model: it has more tokens than the
            embedding has rows (added tokens beyond them are left out), or it frames texts with ids
            that the embedding lacks; or a file of the model names such an id.
    """
    if not (folder / TOKENIZER).is_file():
        return None
    tokenizer = open_tokenizer(str(folder))
    framing, specials = tokenizer.framing, tokenizer.specials
    frame = {*framing.text_prefix, *framing.text_suffix, *framing.stop_ids, specials.decoder_start}
    largest = max(frame)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder / TOKENIZER} has the id {tokenizer.vocab_size - 1}, the model "
            f"{config.vocab_size} ids: the tokenizer belongs to another model; replace or remove "
            "this tokenizer.json"
        )
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{folder}: the special id {largest} of config.json or generation_config.json is "
            f"beyond the {config.vocab_size} ids of the model; correct or remove it there"
        )
    unused = unused_rows(tokenizer, config.vocab_size)
    for note in (*tokenizer.notes, *([unused] if unused else [])):
        LOG.warning("%s: %s", folder, note)
    return tokenizer


def with_dtype(config: ModelConfig, dtype: str) -> ModelConfig:
    """Returns the same config with another compute dtype."""
    return dataclasses.replace(config, dtype=dtype)  # type: ignore[arg-type]


def _match_names(
    files: dict[str, TensorEntry], family: HfFamily, expected: set[str]
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
        if any(re.fullmatch(pattern, name) for pattern in family.ignored_tensors):
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
            target[: part.shape[0]] = part  # a padded vocabulary has more rows


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
