"""What a study declares before its runs: `study` in run.json, or in an external result."""

from typing import Final, Literal, NamedTuple

from protocol.records.safe_read import CheckedFields

MAX_COMPARISONS = 10_000  # Comparisons that are counted at most.
Role = Literal["tuning", "stage", "reported"]
TUNING: Final = "tuning"  # The run served to choose a setting, and is no result.
STAGE: Final = "stage"  # The run is an earlier stage of another run, and is no result.
REPORTED: Final = "reported"
NOT_REPORTED: Final = (TUNING, STAGE)


class StudyRecord(NamedTuple):
    """The declaration that a run carries; a field is blank where nothing was declared."""

    plan: str = ""  # Hash of the plan.
    candidate: str = ""
    axis: str = ""  # The matched cost: training_flops, tokens, params, active_params, ...
    value: float | None = None  # The value of the axis.
    metric: str = ""
    better: str = ""  # "lower" or "higher"
    margin: float | None = None  # Margin of practical equivalence, in the unit of the metric.
    tuning_trials: int | None = None  # Tuning trials that each candidate got.
    role: str = REPORTED  # One of `Role`.
    refutes: str = ""  # The claim that this run refutes.
    comparisons: tuple[tuple[str, str], ...] = ()  # Pairs of candidates.
    n_comparisons: int = 0  # Comparisons of the whole plan, over all sizes and objectives.
    seeds: tuple[int, ...] = ()  # Seeds of the runs that will be reported.
    varied_settings: tuple[str, ...] = ()  # Settings of the objective that candidates may vary.
    # Name of the isoFLOP curve on which this run is a point: several sizes at one budget.
    isoflop_curve: str = ""
    reference: str = ""  # Candidate whose cost the others are matched to.
    is_paired: bool = False  # Runs with the same seed are compared with each other.
    looks: tuple[int, ...] = ()  # Numbers of seeds at which the results are examined.
    tuning_seeds: tuple[int, ...] = ()  # Seeds that selected settings, and are never reported.
    # Settings that tuning selects for each candidate by a search, besides those of a grid.
    tuned_settings: tuple[str, ...] = ()
    choices: str = ""  # Hash of the tuning choices, which plan.json has beside the plan.
    earlier_stages: tuple[str, ...] = ()  # Names of the earlier stages of the runs, in order.
    stage: str = ""  # The stage that this run is; blank for the runs of the plan themselves.


def parse_study(fields: CheckedFields) -> StudyRecord:
    """Returns the declaration in `fields`; an absent key is blank."""
    return StudyRecord(
        plan=fields.text("plan"),
        candidate=fields.text("candidate", 80),
        axis=fields.text("axis", 40),
        value=fields.nonnegative("value"),
        metric=fields.text("metric", 80),
        better=fields.text("better", 20),
        margin=fields.nonnegative("margin"),
        tuning_trials=fields.count("tuning_trials"),
        role=fields.text("role", 20) or REPORTED,
        refutes=fields.text("refutes"),
        comparisons=tuple(fields.text_pairs("comparisons", 80)),
        n_comparisons=min(fields.count("n_comparisons") or 0, MAX_COMPARISONS),
        seeds=tuple(fields.counts("seeds")),
        varied_settings=tuple(fields.texts("varied_settings", 80)),
        isoflop_curve=fields.text("isoflop_curve", 80),
        reference=fields.text("reference", 80),
        is_paired=fields.boolean("is_paired"),
        looks=tuple(fields.counts("looks")),
        tuning_seeds=tuple(fields.counts("tuning_seeds")),
        tuned_settings=tuple(fields.texts("tuned_settings", 80)),
        choices=fields.text("choices"),
        earlier_stages=tuple(fields.texts("earlier_stages", 80)),
        stage=fields.text("stage", 80),
    )
