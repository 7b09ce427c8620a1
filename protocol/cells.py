"""A cell of a study: a candidate under an objective at a size, told apart by what matters."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from errors import ConfigError
from training.settings import Settings
from training.tree import as_json, from_json

# Settings that make no other candidate, because they say where and how it is computed.
ASIDE: tuple[str, ...] = ("seed", "log", "checkpoint", "debug", "eval")
ASIDE += ("model.remat", "train.patience", "train.compile_cache", "data.cache")


class Cell(NamedTuple):
    candidate: str
    objective: str
    size: str  # what the study calls it
    settings: Settings  # its learning rate is the middle of the grid
    budget: float = 0.0  # the value of the axis; 0: what the first of its group comes to
    curve: str = ""  # what it is one of several sizes of (`frontier.minima`); "": it stands alone

    @property
    def key(self) -> "Key":
        return Key(self.candidate, self.objective, self.size)

    @property
    def group(self) -> tuple[str, str]:
        """Within which candidates are compared: at one size, or at the minima of their curves."""
        return self.objective, self.curve or self.size

    @property
    def digest(self) -> str:
        """Equal for candidates that differ in name and seed alone."""
        return hashed(self.matters)

    @property
    def matters(self) -> dict[str, Any]:
        """The settings that make a candidate what it is; `restored` reads them."""
        tree = {k: v for k, v in as_json(self.settings).items() if k not in ASIDE}
        for section, _, name in (path.partition(".") for path in ASIDE if "." in path):
            tree[section] = {k: v for k, v in tree[section].items() if k != name}
        return tree

    def restored(self, matters: Mapping[str, Any]) -> bool:
        """Whether these are the same as its own. A setting that is younger than they are has its
        default, one that is no more makes them others."""
        try:
            return self._replace(settings=from_json(Settings, matters)).matters == self.matters
        except ConfigError:
            return False


class Key(NamedTuple):
    candidate: str
    objective: str
    size: str


def hashed(what: Any) -> str:
    text = json.dumps(what, sort_keys=True, default=dict, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
