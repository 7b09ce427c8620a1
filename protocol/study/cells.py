"""A cell of a study: a candidate under an objective at a size, identified by its settings."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from errors import ConfigError
from protocol.records.inert_settings import drop_inert
from protocol.records.plan_file import NON_IDENTITY_SETTINGS, hash_json, without_settings
from protocol.records.safe_read import CheckedFields
from settings.changes import with_changes
from settings.tree import as_json, from_json
from training.settings import Settings


class Cell(NamedTuple):
    """A candidate under an objective at a size."""

    candidate: str
    objective: str
    size: str  # Name that the study gives the size.
    settings: Settings  # Its learning rate is the center of the tuning grid.
    budget: float = 0.0  # Value of the matched axis; 0: the value of the first cell of its group.
    # Name of the isoFLOP curve on which the cell is one of several sizes; blank: none.
    isoflop_curve: str = ""

    @property
    def key(self) -> "CellKey":
        """The names that identify the cell in its study."""
        return CellKey(self.candidate, self.objective, self.size)

    @property
    def group(self) -> tuple[str, str]:
        """The objective and the size, or curve, at which candidates are compared."""
        return self.objective, self.isoflop_curve or self.size

    @property
    def digest(self) -> str:
        """The hash of `identity_settings`, which candidates share if only name and seed differ."""
        return hash_json(self.identity_settings)

    @property
    def identity_settings(self) -> dict[str, object]:
        """The settings that identify a candidate; `matches_settings` reads them."""
        return without_settings(as_json(self.settings), NON_IDENTITY_SETTINGS)

    @property
    def read_digest(self) -> str:
        """The hash of the identity settings that something reads; copies share it."""
        return hash_json(drop_inert(CheckedFields(self.identity_settings, "settings")))

    def matches_settings(self, settings: Mapping[str, object]) -> bool:
        """Returns whether recorded identity settings are those of this cell.

        A setting that was added after the record has its default value there. A setting that was
        removed since then makes the record differ.
        """
        try:
            return (
                self._replace(settings=from_json(Settings, settings)).identity_settings
                == self.identity_settings
            )
        except ConfigError:
            return False


class CellKey(NamedTuple):
    """The names that identify a cell in its study."""

    candidate: str
    objective: str
    size: str


def make_cells(
    sizes: Mapping[str, Mapping[str, Settings]], objectives: Sequence[str]
) -> list[Cell]:
    """Returns a cell for each candidate of each size under each objective.

    The objective changes the cost of a token, so match cells after this, for each objective.
    """
    return [
        Cell(name, objective, size, with_changes(settings, {"objective": objective}))
        for size, candidates in sizes.items()
        for name, settings in candidates.items()
        for objective in objectives
    ]
