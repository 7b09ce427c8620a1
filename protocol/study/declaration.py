"""What a study declares and what tuning selects: the parts of a plan, and its runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from errors import ConfigError
from protocol.records.metrics import Direction
from protocol.records.study_record import Role
from protocol.study.budget import Axis
from protocol.study.cells import CellKey
from protocol.study.search_space import SearchSpace
from protocol.study.tuning import MIN_RATES, NO_TRIAL, SweepPoint, TuningTrial, learning_rate_grid
from training.settings import Settings

MIN_SEARCH_SEEDS = 2  # Tuning seeds of a search, whose many trials a lucky seed would decide.


@dataclass(frozen=True)
class Declaration:
    """What the study will claim; any other result is exploratory."""

    axis: Axis
    metric: str  # Name in the results, as test/bits_per_byte.
    margin: float  # Margin of practical equivalence.
    comparisons: tuple[tuple[str, str], ...]  # Pairs of candidates, at each objective and size.
    unit: str = "bits per byte"
    better: Direction = "lower"
    alpha: float = 0.05
    varied_settings: tuple[str, ...] = ()  # Settings of the objective that candidates may vary.
    reference: str = ""  # Candidate whose cost the others are matched to.
    is_paired: bool = False  # Runs with the same seed are compared with each other.
    looks: tuple[int, ...] = ()  # Numbers of seeds at which the results are examined.
    # Training before each run, in order: changes to its settings by name of the stage.
    earlier_stages: tuple[tuple[str, Mapping[str, object]], ...] = ()


@dataclass(frozen=True)
class Tuning:
    """The tuning that every candidate gets, on a metric of the validation split."""

    metric: str
    n_rates: int = MIN_RATES
    seeds: tuple[int, ...] = (1000,)  # Never reported.
    trials: tuple[TuningTrial, ...] = ()  # Further trials at the best learning rate.
    search: SearchSpace | None = None  # Settings that are tuned together; None: the rate alone.

    def __post_init__(self) -> None:
        split, _, name = self.metric.partition("/")
        if split != "valid" or not name:
            raise ConfigError(
                f"the metric of tuning is {self.metric!r}, must be of the validation split, "
                "because claims are made on the test split; name one as valid/bits_per_byte"
            )
        if self.search and len(self.seeds) < MIN_SEARCH_SEEDS:
            raise ConfigError(
                f"a search has the tuning seeds {list(self.seeds)}, must have {MIN_SEARCH_SEEDS} "
                "or more, because the luckiest of many trials is selected; add seeds"
            )
        if self.search and self.trials:
            raise ConfigError(
                f"tuning_trials {[trial.name for trial in self.trials]} stand beside a search; "
                "declare their settings in the search"
            )

    def first_points(self, settings: Settings) -> tuple[SweepPoint, ...]:
        """Returns the points that a sweep of a cell with these settings begins with.

        A grid of rates may be extended; a search is complete.

        Raises:
            ConfigError: if the settings do not permit one of them.
        """
        if self.search:
            return self.search.points(settings)
        rates = learning_rate_grid(settings.optimizer.learning_rate, self.n_rates)
        return tuple(SweepPoint(rate) for rate in rates)


class TuningChoice(NamedTuple):
    """The result of tuning a cell."""

    learning_rate: float
    n_trials: int  # Number of trials.
    trial: TuningTrial = NO_TRIAL
    curve: Mapping[str, object] = {}  # The sweep that selected the rate, as sweep.json has it.
    # FLOPs, seconds and number of the tuning runs, where they are known.
    costs: Mapping[str, float] = {}


class PlannedRun(NamedTuple):
    """A run of the plan, with all of its settings."""

    name: str
    cell_key: CellKey
    role: Role
    learning_rate: float
    seed: int
    trial_name: str
    settings: dict[str, object]  # All settings, as `settings.tree.from_json` reads them.
    training_flops: float
    steps: int
    study: dict[str, object]  # The section "study" of its run.json.
    # Earlier stages, each of which starts from the one before; the run starts from the last.
    earlier_stages: tuple["PlannedRun", ...] = ()
