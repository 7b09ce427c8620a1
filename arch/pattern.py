"""Layer patterns: a layer is `mixer+channel`; either may name a variant (`attention@local+mlp`).

Mixers side by side are joined by `&`: `attention@local&mamba2+mlp`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from errors import ConfigError
from settings.types import did_you_mean


class LayerSpec(NamedTuple):
    """The parts of one block; a variant names a section of changed settings, "" means none.

    Mixers side by side are one name such as `attention&mamba2`, with variants such as `local&`.
    """

    mixer: str
    mixer_variant: str
    channel: str
    channel_variant: str

    def mixers(self) -> tuple[tuple[str, str], ...]:
        """Returns the name and the variant of each mixer."""
        return split_mixers(self.mixer, self.mixer_variant)

    def parts(self) -> tuple[tuple[str, str], ...]:
        """Returns the name and the variant of each mixer and of the channel."""
        return (*self.mixers(), (self.channel, self.channel_variant))


class LayerLayout(NamedTuple):
    """The blocks of a stack: a prefix, one period, how often the period repeats, and a suffix."""

    prefix: tuple[LayerSpec, ...]
    period: tuple[LayerSpec, ...]
    repeats: int
    suffix: tuple[LayerSpec, ...]

    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """Returns every block of the stack, in order."""
        return (*self.prefix, *self.period * self.repeats, *self.suffix)

    @property
    def depth(self) -> int:
        """The number of blocks of the stack."""
        return len(self.prefix) + len(self.period) * self.repeats + len(self.suffix)

    def layer_counts(self) -> dict[LayerSpec, int]:
        """Returns the number of uses of each distinct block, in the order of their first uses."""
        counts: dict[LayerSpec, int] = {}
        for layers, uses in ((self.prefix, 1), (self.period, self.repeats), (self.suffix, 1)):
            for layer in layers:
                counts[layer] = counts.get(layer, 0) + uses
        return counts


def split_mixers(name: str, variant: str) -> tuple[tuple[str, str], ...]:
    """Returns the name and the variant of each of several mixers side by side."""
    names = name.split("&")
    variants = variant.split("&") if variant else [""] * len(names)
    return tuple(zip(names, variants, strict=True))


def parse_layer(
    text: str, setting: str, mixers: Iterable[str], channels: Iterable[str]
) -> LayerSpec:
    """Parses one layer of a pattern, such as `attention@local+mlp`.

    Raises:
        ConfigError: if `text` is not `mixer+channel` or names an unknown part.
    """
    halves = text.split("+")
    if len(halves) != 2:
        raise ConfigError(f"{setting} has {text!r}, must be mixer+channel, as attention+mlp")
    fields = []
    for half, kind, choices in zip(halves, ("mixer", "channel"), (mixers, channels), strict=True):
        texts = half.split("&") if kind == "mixer" else [half]
        names, _, variants = zip(*(text.strip().partition("@") for text in texts), strict=True)
        for name in names:
            if name not in choices:
                hint = did_you_mean(name, choices)
                raise ConfigError(f"{setting} has the {kind} {name!r}; {hint}")
        fields += ["&".join(names), "&".join(variants) if any(variants) else ""]
    return LayerSpec(*fields)


def make_layout(
    first: list[LayerSpec], layers: list[LayerSpec], depth: int, section: str
) -> LayerLayout:
    """Repeats `layers` after `first` until the stack has `depth` blocks.

    Raises:
        ConfigError: if `layers` is empty, or `first` and one repeat of it exceed `depth`.
    """
    if not layers:
        raise ConfigError(f"{section}.layers is empty, must name a block, as ('attention+mlp',)")
    min_depth = len(first) + len(layers)
    if depth < min_depth:
        raise ConfigError(
            f"{section}.depth {depth} is too small for {section}.first_layers and one repeat of "
            f"{section}.layers ({min_depth} blocks); nearest valid value: {min_depth}"
        )
    repeats, remaining = divmod(depth - len(first), len(layers))
    return LayerLayout(tuple(first), tuple(layers), repeats, tuple(layers[:remaining]))
