"""How the settings of parts follow the size of a model, as the config of each part declares.

    @config
    class LstmConfig:
        scaled_fields: ClassVar = ("width",)  # Fields proportional to the width of the model.
        knob_fields: ClassVar = ("width",)  # Fields by which a cost may be matched.

Both name integers. A scaled field that is 0 is derived from the width of the model, and stays 0.
`configs` and `protocol/study/model_sizing.py` change sizes by these declarations alone, so a part
without them is refused where its size would have to change.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from arch.config import CHANNELS, ModelConfig
from errors import ConfigError
from settings.changes import with_changes


@runtime_checkable
class SizeDeclaration(Protocol):
    """The settings of a part that declare how they follow the size of the model."""

    @property
    def scaled_fields(self) -> tuple[str, ...]:
        """The fields that are proportional to the width of the model."""

    @property
    def knob_fields(self) -> tuple[str, ...]:
        """The fields by which a cost may be matched while the width does not change."""


@runtime_checkable
class InnerWidth(Protocol):
    """The settings of a part that derive a `width` of 0 from the width of the model."""

    def inner_dim(self, D: int) -> int:
        """Returns the width of the part in a model of width D."""


class SizeSetting(NamedTuple):
    """A setting of a part that declares how it follows the size of the model."""

    key: str  # Dotted key in ModelConfig.
    value: int
    size: int  # The value, or what replaces a width of 0 in this model.
    is_scaled: bool  # Proportional to the width of the model.
    is_knob: bool  # A cost may be matched by it.
    is_channel: bool  # Belongs to a channel, not to a mixer.


def size_settings(model: ModelConfig) -> list[SizeSetting]:
    """Returns the declared settings of the parts that the layers use, in order of declaration.

    A setting of a variant follows those of the parts.
    """
    settings: dict[str, SizeSetting] = {}
    for name, variant in _used_parts(model):
        part = model.part_config(name, variant)
        if not isinstance(part, SizeDeclaration):
            continue
        section = f"variants.{variant}" if variant else name
        for field in dict.fromkeys((*part.scaled_fields, *part.knob_fields)):
            if variant and field not in model.variants[variant]:
                continue
            value = vars(part)[field]
            size = value
            if field == "width" and isinstance(part, InnerWidth):
                size = part.inner_dim(model.width)
            settings[f"{section}.{field}"] = SizeSetting(
                key=f"{section}.{field}",
                value=value,
                size=size,
                is_scaled=field in part.scaled_fields,
                is_knob=field in part.knob_fields,
                is_channel=name in CHANNELS,
            )
    return list(settings.values())


def with_width(model: ModelConfig, width: int) -> ModelConfig:
    """Returns the model at another width, with the declared sizes of its parts in proportion.

    Raises:
        ConfigError: if a part does not declare its sizes, or one would not be a whole number.
    """
    require_declarations(model)
    changes = {
        setting.key: whole_size(setting.value * width / model.width, setting.key)
        for setting in size_settings(model)
        if setting.is_scaled
    }
    return with_changes(model, {"width": width} | changes, "model")


def whole_size(size: float, key: str) -> int:
    """Returns a size that follows the width of the model.

    Raises:
        ConfigError: if it is not a whole number.
    """
    if size != round(size):
        raise ConfigError(f"model.{key} would be {size:g}; choose another width")
    return round(size)


def require_declarations(model: ModelConfig) -> None:
    """Checks that every part with settings declares how they follow the size of the model.

    Raises:
        ConfigError: if a part that the layers use does not.
    """
    for name, variant in _used_parts(model):
        part = model.part_config(name, variant)
        if part is not None and not isinstance(part, SizeDeclaration):
            raise ConfigError(
                f"the size of {name} cannot follow the width of the model, because "
                f"{type(part).__name__} declares no scaled_fields and knob_fields; declare them "
                "as arch/scaling.py describes, () where there are none"
            )


def sections_with_heads() -> Iterator[str]:
    """Yields the sections of ModelConfig whose field `heads` is proportional to the width."""
    default = ModelConfig()
    for field in dataclasses.fields(ModelConfig):
        part = getattr(default, field.name)
        if isinstance(part, SizeDeclaration) and "heads" in part.scaled_fields:
            yield field.name


def _used_parts(model: ModelConfig) -> list[tuple[str, str]]:
    """Returns the parts that the layers use, without and with their variants, as (name, variant).

    Parts come in the order of their sections in ModelConfig, and variants follow all of them.
    """
    used = {part for layer in model.layer_specs() for part in layer.parts()}
    used |= {("cross_attention", "")} if model.encoder.depth else set()
    used |= {(name, "") for name, _ in used}
    order = {field.name: i for i, field in enumerate(dataclasses.fields(model))}
    return sorted(used, key=lambda part: (bool(part[1]), order.get(part[0], -1), part[1]))
