"""A folder of Hugging Face's as a model of ours, and back; parameters pass one leaf at a time."""

import dataclasses
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from arch import Model, ModelConfig
from data.tokenizers import FILE as TOKENIZER
from data.tokenizers import Tokenizer, open_tokenizer
from errors import CheckpointError, ConfigError, DataError
from hub import tensors
from hub.families import FAMILIES
from hub.family import Family
from hub.graph import differences
from hub.keys import FILE, Keys, read_config
from hub.layouts import cut, joined
from hub.names import MOST, ROWS, Bound, bind, shape
from hub.tensors import Entry
from schema import nearest
from training import mesh as meshes
from training.leaves import named_leaves

VIEWS = {"causal": "causal", "masked": "both"}  # of families without an encoder
DTYPES: dict[str, Any] = {
    "float32": np.dtype("f4"),
    "float16": np.dtype("f2"),
    "bfloat16": jnp.dtype("bfloat16"),
}


def family_of(folder: Path) -> tuple[Family, ModelConfig]:
    """What config.json says; ConfigError for what is not implemented."""
    found = read_config(folder)
    kind = found.get("model_type")
    if kind not in FAMILIES:
        raise ConfigError(
            f"{folder / FILE}: model_type {kind!r} is not known; known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    keys = Keys(found, str(folder / FILE), tensors.entries(folder), family.defaults)
    try:
        config = family.read(keys)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{folder / FILE} is no config of {kind} ({why}); correct it") from error
    keys.done()
    return family, config


def load_model(
    folder: Path, family: Family, config: ModelConfig, mesh: Mesh | None = None
) -> Model:
    """The model with its parameters where `mesh` has them, by default on the first device."""
    abstract = jax.eval_shape(lambda: Model(config, key=jax.random.key(0)))
    leaves = named_leaves(abstract)
    homes = dict.fromkeys(leaves, None)
    if mesh is not None:
        homes = dict(zip(leaves, jax.tree.leaves(meshes.layouts(mesh, abstract)), strict=True))
    bounds = bind(config, abstract, family.ties(config))
    files = _renamed(tensors.entries(folder), family, {n for b in bounds for n in b.theirs})
    for name, of in family.twins(config):
        if name in files and all(name not in b.theirs for b in bounds):
            files.setdefault(of, files.pop(name))
    _check(folder, family, files, bounds, config, leaves)
    made: dict[str, Any] = {}
    for names, group in _by_leaves(bounds):
        buffers = {name: np.zeros(leaves[name].shape, leaves[name].dtype) for name in names}
        for bound in group:
            _fill(buffers, bound, files)
        for name in names:
            made[name] = _placed(buffers.pop(name), homes[name])
    return jax.tree.unflatten(jax.tree.structure(abstract), [made[name] for name in leaves])


def save_model(
    model: Model, config: ModelConfig, folder: Path, family: Family, dtype: str, limit: int
) -> None:
    """Write the tensors of `model` as `family` names them."""
    leaves, kind = named_leaves(model), DTYPES[dtype]
    twins = family.twins(config)

    def each() -> Iterator[tuple[str, np.ndarray]]:
        for bound in bind(config, model, family.ties(config)):
            parts = [_slice(leaves, place.leaf, place.repeat, config) for place in bound.places]
            many = "{e}" in bound.tie.theirs
            rows = zip(*parts, strict=True) if many else [parts]
            for name, own in zip(bound.theirs, rows, strict=True):
                whole = bound.tie.form.theirs(joined(list(own), bound.tie))
                made = np.ascontiguousarray(whole.astype(kind))
                yield from ((n, made) for n in (name, *(t for t, of in twins if of == name)))

    tensors.write(folder, each(), limit)


def exported(
    config: ModelConfig, name: str = "", views: Collection[str] = (), pad: int | None = None
) -> tuple[Family, dict[str, Any]]:
    """The first family that computes what `config` does (or that of `name`), and its keys; with
    `views`, one that reads a row in one of these ways; with `pad`, the id of the texts' padding
    (-1: they have none), one that numbers positions so.
    """
    if name and name not in FAMILIES:
        raise ConfigError(f"family {name!r} is not known; {nearest(name, FAMILIES)}")
    best: tuple[int, str] | None = None
    abstract = jax.eval_shape(lambda: Model(config, key=jax.random.key(0)))
    for family in [FAMILIES[name]] if name else FAMILIES.values():
        try:
            keys = family.write(config)
            names = [n for b in bind(config, abstract, family.ties(config)) for n in b.theirs]
            again = family.read(
                Keys({"model_type": family.kind, **keys}, FILE, names, family.defaults)
            )
            missed = differences(config, again) + family.lacks(config)
            if views and family.task in VIEWS and VIEWS[family.task] not in views:
                missed.append(f"the view {', '.join(views)}, not {VIEWS[family.task]}")
            if family.positions == "ids" and pad not in (None, keys["pad_token_id"]):
                told = f"{keys['pad_token_id']}, one below model.positions.offset"
                missed.append(f"the tokenizer's padding {pad}, which must be {told}")
        except (LookupError, ConfigError, CheckpointError):
            continue
        if not missed:
            return family, keys
        told = f"{family.kind} would differ in {'; '.join(missed[:3])}"
        best = min(best or (len(missed), told), (len(missed), told))
    why = best[1] if best else "none has words for its parts"
    raise ConfigError(f"no family computes what this model does: {why}; train one that fits")


def tokenizer_of(folder: Path, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer beside the weights, if there is one; DataError if it has ids without a row."""
    if not (folder / TOKENIZER).is_file():
        return None
    found = open_tokenizer(str(folder))
    if found.vocab > config.vocab:
        raise DataError(
            f"{folder / TOKENIZER} has {found.vocab} ids, the model {config.vocab}: it is of "
            "another model; give the folder its own tokenizer.json, or none"
        )
    return found


def in_dtype(config: ModelConfig, dtype: str) -> ModelConfig:
    return dataclasses.replace(config, dtype=dtype)  # type: ignore[arg-type]


def _renamed(files: dict[str, Entry], family: Family, wanted: set[str]) -> dict[str, Entry]:
    """Entries under the names of the map; buffers are left out."""
    found: dict[str, Entry] = {}
    for name, entry in files.items():
        for pattern, replacement in family.renames:
            name = re.sub(pattern, replacement, name)
        if any(re.fullmatch(pattern, name) for pattern in family.ignored):
            continue
        known = {*wanted, *dict(family.copies)}
        if name not in known and family.prefix + name in known:
            name = family.prefix + name
        if name in found:
            raise CheckpointError(f"{entry.path} has {name} under two names; remove one")
        found[name] = entry
    for copy, of in family.copies:
        if copy in found and copy not in wanted and of in wanted:
            other = found.pop(copy)
            if not _equal(found.setdefault(of, other), other):
                raise CheckpointError(
                    f"{other.path} has {copy} and {of}, which must be one and are not equal; set "
                    "tie_word_embeddings to false in config.json if they are two"
                )
    return found


def _check(
    folder: Path,
    family: Family,
    files: dict[str, Entry],
    bounds: list[Bound],
    config: ModelConfig,
    leaves: dict[str, Any],
) -> None:
    """Name everything that does not fit, before anything is read."""
    wanted = {name: shape(b, config, leaves) for b in bounds for name in b.theirs}
    misshapen = [
        f"{n} {list(files[n].shape)}, must be {list(wanted[n])}"
        for n in wanted
        if n in files and files[n].shape != wanted[n]
    ]
    groups = {
        "missing": sorted(set(wanted) - set(files)),
        "not known": sorted(set(files) - set(wanted)),
        "of another shape": misshapen,
        "no numbers with a fraction": [
            n for n in wanted if n in files and files[n].dtype.kind in "iub"
        ],
    }
    told = [
        f"{len(names)} {what}: {', '.join(names[:MOST])}{' ...' if len(names) > MOST else ''}"
        for what, names in groups.items()
        if names
    ]
    if told:
        raise CheckpointError(
            f"{folder} is no {family.kind} as its config.json says: {'; '.join(told)}; "
            "use the config and the weights of one model"
        )


def _by_leaves(bounds: list[Bound]) -> Iterator[tuple[list[str], list[Bound]]]:
    """Groups of lines that fill the same leaves, one group in memory at a time."""
    groups: list[tuple[set[str], list[Bound]]] = []
    for bound in bounds:
        own = {place.leaf for place in bound.places}
        if groups and groups[-1][0] & own:
            groups[-1][0].update(own)
            groups[-1][1].append(bound)
        else:
            groups.append((own, [bound]))
    merged: list[tuple[set[str], list[Bound]]] = []
    for own, lines in groups:
        at = next((g for g in merged if g[0] & own), None)
        if at is None:
            merged.append((set(own), list(lines)))
        else:
            at[0].update(own)
            at[1].extend(lines)
    for own, lines in merged:
        yield sorted(own), lines


def _fill(buffers: dict[str, np.ndarray], bound: Bound, files: dict[str, Entry]) -> None:
    many = "{e}" in bound.tie.theirs
    for e, name in enumerate(bound.theirs):
        parts = cut(bound.tie.form.ours(tensors.read(files[name])), bound.tie)
        for place, part in zip(bound.places, parts, strict=True):
            into = buffers[place.leaf]
            into = into if place.repeat < 0 else into[place.repeat]
            into = into[e] if many else into
            into[: part.shape[0]] = part


def _slice(leaves: dict[str, Any], name: str, repeat: int, config: ModelConfig) -> np.ndarray:
    leaf = leaves[name] if repeat < 0 else leaves[name][repeat]
    found = np.asarray(leaf)
    return found[: config.vocab] if name in ROWS else found


def _placed(buffer: np.ndarray, home: Any) -> jax.Array:
    if home is None:
        return jnp.asarray(buffer)
    return jax.make_array_from_callback(buffer.shape, home, lambda at: buffer[at])


def _equal(a: Entry, b: Entry) -> bool:
    return a == b or (a.shape == b.shape and np.array_equal(tensors.read(a), tensors.read(b)))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
