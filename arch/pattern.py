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


def parse(text: str, mixers: Iterable[str], channels: Iterable[str]) -> Entry:
    """The entry that `text` names; ConfigError with the nearest name otherwise."""
    halves = text.split("+")
    if len(halves) != 2:
        raise ConfigError(f"model.layers has {text!r}, must be mixer+channel, as attention+mlp")
    found = []
    for half, kind, known in zip(halves, ("mixer", "channel"), (mixers, channels), strict=True):
        name, _, variant = half.strip().partition("@")
        if name not in known:
            raise ConfigError(f"model.layers has the {kind} {name!r}; {nearest(name, known)}")
        found += [name, variant]
    return Entry(*found)
