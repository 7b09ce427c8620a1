"""Finds the family of a published folder, and the family as which a model can be exported."""

from collections.abc import Collection
from pathlib import Path

import jax

from arch import Model, ModelConfig
from arch.sequence import View
from errors import CheckpointError, ConfigError
from hub import safetensors_io
from hub.config_equivalence import differences
from hub.config_limits import check_limits
from hub.families import FAMILIES, OLD_MODEL_TYPES
from hub.family import HfFamily
from hub.hf_config import CONFIG_FILE, HfConfig, read_config
from hub.name_binding import resolve_name_map
from settings.json_types import JsonObject
from settings.types import did_you_mean

# The view in which a family without an encoder reads its rows, by its task.
VIEW_OF_TASK: dict[str, View] = {
    "causal": "causal",
    "masked": "bidirectional",
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
