"""Layer patterns: `mixer+channel`, each optionally a variant (`attention@local+mlp`)."""

from collections.abc import Iterable
from typing import NamedTuple

from errors import ConfigError
from schema import nearest


class Entry(NamedTuple):
    """One block of a pattern; a variant names a section of differences, "" the part as it is."""

    mixer: str
    mixer_variant: str
    channel: str
    channel_variant: str


class Plan(NamedTuple):
    """A stack's blocks: those before the repeats, one repeat, how many, those left over."""

    first: tuple[Entry, ...]
    layers: tuple[Entry, ...]
    repeats: int
    last: tuple[Entry, ...]

    def entries(self) -> tuple[Entry, ...]:
        """Every block, in order."""
        return (*self.first, *self.layers * self.repeats, *self.last)


def parse(text: str, where: str, mixers: Iterable[str], channels: Iterable[str]) -> Entry:
    """The entry that `text` names; ConfigError with the nearest name otherwise."""
    halves = text.split("+")
    if len(halves) != 2:
        raise ConfigError(f"{where} has {text!r}, must be mixer+channel, as attention+mlp")
    found = []
    for half, kind, known in zip(halves, ("mixer", "channel"), (mixers, channels), strict=True):
        name, _, variant = half.strip().partition("@")
        if name not in known:
            raise ConfigError(f"{where} has the {kind} {name!r}; {nearest(name, known)}")
        found += [name, variant]
    return Entry(*found)


def plan(first: list[Entry], layers: list[Entry], depth: int, where: str) -> Plan:
    """`layers` tiled over what `first` leaves of `depth`; ConfigError if one round does not fit."""
    if not layers:
        raise ConfigError(f"{where}.layers is empty, must name a block, as ('attention+mlp',)")
    least = len(first) + len(layers)
    if depth < least:
        raise ConfigError(
            f"{where}.depth {depth} does not hold {where}.first and one round of {where}.layers"
            f" ({least} blocks); nearest: {least}"
        )
    repeats, left = divmod(depth - len(first), len(layers))
    return Plan(tuple(first), tuple(layers), repeats, tuple(layers[:left]))
