"""What a reader should know before believing a group: what was not declared, and what differs."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from formatting import format_percent
from protocol.board.columns import MAX_LISTED, format_score, join_names
from protocol.board.groups import Group
from protocol.board.rows import BoardRow
from protocol.board.study_cost import run_joules
from protocol.records.metrics import Direction
from protocol.records.plan_file import RecordedChoice
from protocol.records.series import JOULES_PER_KWH
from protocol.records.tuning_record import (
    DERIVED_SETTINGS,
    TrialRecord,
    best_trial,
    describe_edges,
)
from protocol.statistics.tuning_spread import TunedDifference, expected_best, tuned_difference
from protocol.statistics.verdict import Verdict

TRAINING_SECTIONS = ("optimizer.", "train.")  # Sections of settings that are listed first.
MAX_TUNED_PAIRS = 6  # Differences whose intervals over tunings are listed.
# Share of a split that may be in another one without a word: the default of data.max_shared.
MAX_SHARED_TEXT = 0.001
MAX_MARGIN_SIGMAS = 3.0  # Standard deviations of seeds that a margin should not exceed.


def differences_sentence(group: Group) -> str:
    """Returns the settings in which candidates differ, and those of the sizes of their curves."""
    rows, labels = group.rows, group.labels
    if len(rows) == 1:
        return f"Nothing: {rows[0].name} is the only row here."
    differing = _differing_settings(rows)
    names = list(dict.fromkeys(labels))
    of_sizes = {
        key
        for name in names
        for key in _differing_settings(
            [row for row, label in zip(rows, labels, strict=True) if label == name]
        )
    }
    of_names = [key for key in differing if key not in of_sizes]
    sentences = []
    if of_names:
        settings = ", ".join(_collapse_sections(of_names, rows, labels))
        sentences.append(f"{join_names(names)} differ in {settings}.")
    elif len(names) > 1:
        ending = " but for their sizes" * bool(of_sizes)
        sentences.append(f"{join_names(names)} have the same settings{ending}.")
    if of_sizes:
        listed = ", ".join(key for key in differing if key in of_sizes)
        sentences.append(f"The sizes of a curve differ in {listed}.")
    return " ".join(sentences)


def _differing_settings(rows: Sequence[BoardRow]) -> list[str]:
    """Returns the settings in which rows differ, those of training first."""
    tables = [row.first_run.settings for row in rows]
    keys = sorted({key for table in tables for key in table})
    differing = [key for key in keys if _differs(key, [table.get(key) for table in tables])]
    # Training first: an architecture is not compared where candidates were trained differently.
    return sorted(differing, key=lambda key: (not key.startswith(TRAINING_SECTIONS), key))


def _differs(key: str, values: Sequence[str | None]) -> bool:
    """Whether rows differ in a setting; None stands for a row on whose results it has no effect.

    A part of the model that only some rows have is a difference, a setting of training is not.
    """
    has_effect = [value for value in values if value is not None or not key.startswith("train.")]
    return len({*has_effect}) > 1


def _collapse_sections(
    keys: Sequence[str], rows: Sequence[BoardRow], labels: Sequence[str]
) -> list[str]:
    """Returns settings, but one entry for a section of a part that only some of the rows have."""
    owners: dict[str, dict[str, None]] = {}
    n_labels = len({*labels})
    for row, label in zip(rows, labels, strict=True):
        paths = [key.split(".") for key in row.first_run.settings]
        sections = {".".join(path[:depth]) for path in paths for depth in range(2, len(path))}
        for section in sections:
            owners.setdefault(section, {})[label] = None

    def entry(key: str) -> str:
        path = key.split(".")
        for depth in range(2, len(path)):
            section = ".".join(path[:depth])
            if len(owners[section]) < n_labels:
                return f"{section} (only of {join_names([*owners[section]])})"
        return key

    return list(dict.fromkeys(map(entry, keys)))


def declaration_sentences(group: Group) -> list[str]:
    """Returns what was not declared or not known before the runs."""
    sentences = []
    if group.value is None:
        sentences.append("The costs of these rows are unknown, so they may not be equal.")
    elif not group.axis_declared:
        sentences.append(
            "Exploratory: no matched axis was declared before the runs. Rows are grouped because "
            "their training FLOPs agree within 1 %."
        )
    else:
        sentences += _plan_sentences(group)
    if group.axis_declared and group.is_exploratory:
        sentences.append("Exploratory: these comparisons were not declared before the runs.")
    return sentences


def _plan_sentences(group: Group) -> list[str]:
    """Returns why it is not known that the study was declared before its runs."""
    runs = [run for row in group.rows if not row.exclusions for run in row.runs]
    if not all(run.study.plan for run in runs):
        return ["The matched axis is declared, but no plan proves that this happened before."]
    if not all(run.plan for run in runs):
        return ["No plan.json is beside these runs, so that what they declare cannot be checked."]
    return []


def margin_sentences(group: Group) -> list[str]:
    """Returns why a claim of equivalence says little, where the margin is wide."""
    margins = {v.metric.margin for v in group.verdicts if v.is_declared and v.metric.margin}
    samples = [row.sample for row in group.rows if row.is_ranked and len(row.sample.values) > 1]
    if not margins or not samples:
        return []
    means = [s.mean for s in samples if s.mean is not None]
    spread, margin = max(means) - min(means), max(margins)
    sigma = math.sqrt(statistics.fmean(statistics.variance(s.values) for s in samples))
    if margin > max(MAX_MARGIN_SIGMAS * sigma, spread):
        return [
            f"The declared margin, {margin:.3g}, is wider than all differences here ({spread:.2g}) "
            f"and than {MAX_MARGIN_SIGMAS:g} standard deviations of seeds ({sigma:.2g}): "
            '"equivalent" says little.'
        ]
    return []


def origin_sentences(group: Group) -> list[str]:
    """Returns what the rows were trained with, where it differs, and seeds that nobody declared."""
    sentences = []
    runs = [run for row in group.rows if not row.exclusions for run in row.runs]
    for noun, values in (
        ("versions of the code", {run.code_version for run in runs}),
        ("versions of packages", {run.evidence.packages for run in runs}),
        ("kinds of hardware", {run.hardware for run in runs if not run.external_source}),
    ):
        if len(values) > 1:
            sentences.append(
                f"The runs were trained with {len(values)} {noun}, which may change results; the "
                "table has those of each run."
            )
    tables = [run.evidence.variables for run in runs if not run.external_source]
    names = sorted({name for table in tables for name in table})
    if differing := [name for name in names if len({table.get(name) for table in tables}) > 1]:
        sentences.append(
            f"The runs were trained under other values of {', '.join(differing[:MAX_LISTED])} in "
            "the environment, which may change results; run.json has those of each run."
        )
    for row in group.rows:
        seeds = [run.seed for run in row.runs if run.seed is not None]
        is_declared = any(run.study.seeds for run in row.runs)
        if row.is_ranked and not is_declared and seeds and sorted(seeds) != [*range(len(seeds))]:
            listed = ", ".join(map(str, sorted(seeds)))
            sentences.append(f"{row.name} has the seeds {listed}, which no plan declares.")
    return sentences


def equal_score_sentences(group: Group) -> list[str]:
    """Returns which seeds of a row have one score to the last digit, as copies of one run have."""
    sentences = []
    for row in group.rows:
        seeds: dict[float, list[int]] = defaultdict(list)
        for run in row.runs:
            if run.value is not None and run.seed is not None and not row.exclusions:
                seeds[run.value].append(run.seed)
        for value, equal in seeds.items():
            if len(equal) > 1:
                names = " and ".join(map(str, sorted(equal)[:3]))
                sentences.append(
                    f"{row.name}: the seeds {names} have the same score, {value:.6g}, to the last "
                    "digit; they may be one run."
                )
    return sentences


def skipped_sentences(group: Group) -> list[str]:
    """Returns how many updates of a row were not applied: its runs learned from fewer batches."""
    sentences = []
    for row in group.rows:
        runs = [run for run in row.runs if run.evidence.skipped_updates]
        if runs and not row.exclusions:
            n_skipped = sum(run.evidence.skipped_updates for run in runs)
            n_runs = "1 of its runs" if len(runs) == 1 else f"{len(runs)} of its runs"
            sentences.append(
                f"{row.name}: {n_runs} skipped {n_skipped} of {sum(run.steps for run in runs)} "
                "updates, whose loss or gradient was not finite or whose loss was a spike."
            )
    return sentences


def seal_sentences(group: Group) -> list[str]:
    """Returns how many runs have no hashes of their files."""
    runs = [run for row in group.rows for run in row.runs if not run.external_source]
    n_open = sum(not run.evidence.is_sealed for run in runs)
    if not n_open:
        return []
    verb = "is" if n_open == 1 else "are"
    return [
        f"{n_open} of {len(runs)} runs {verb} not sealed: their files have no hashes, so "
        "consistent edits cannot be seen."
    ]


def energy_sentences(group: Group) -> list[str]:
    """Returns how the energy of these runs is known, and the factor of their CO2."""
    runs = [run for row in group.rows for run in row.runs]
    estimated = any("estimated_joules" in run.costs for run in runs)
    if not estimated and not any("joules" in run.costs for run in runs):
        return []
    sources = "; or ".join(sorted({run.energy_source for run in runs} - {""})) or "unknown source"
    factors = sorted(
        {
            round(run.costs["co2_grams"] / joules * JOULES_PER_KWH, 3)
            for run in runs
            if (joules := run_joules(run)) and "co2_grams" in run.costs
        }
    )
    kind = "an estimate in part or as a whole" if estimated else "measured"
    texts = [f"Energy is {kind} ({sources})."]
    if factors:
        stated = " or ".join(f"{factor:g}" for factor in factors)
        texts.append(f"CO2 is {stated} g per kWh.")
    return [" ".join(texts)]


def contamination_sentences(group: Group) -> list[str]:
    """Returns which split of the metric has text that the runs were trained on."""
    runs = [run for row in group.rows if not row.exclusions for run in row.runs]
    shares: dict[str, float] = {}
    for run in runs:
        split = run.metric.partition("/")[0]
        shares[split] = max(shares.get(split, 0.0), run.evidence.shared_text.get(split, 0.0))
    return [
        f"{format_percent(share)} of the {split} split (documents, or 13 words in a row) is in "
        "another split too: a model that remembers its training text has too good a score."
        for split, share in sorted(shares.items())
        if share > MAX_SHARED_TEXT
    ]


def tokenizer_sentences(group: Group) -> list[str]:
    """Returns what a lossy tokenizer of these runs means, with the runs' own shares."""
    runs = [run for row in group.rows for run in row.runs]
    return sorted({run.evidence.lossy_tokenizer for run in runs} - {""})


def tuning_sentences(group: Group) -> list[str]:
    """Returns what other trials of the searches could change, and which optima are at an end."""
    rows = {row.name: row for row in group.rows if not row.exclusions}
    choices = {name: choice for name, row in rows.items() if (choice := _choice(row))}
    searches = {
        name: choice
        for name, choice in choices.items()
        if _is_search(choice) and _is_tuned_by_metric(rows[name])
    }
    spreads = []
    for verdict in group.verdicts:
        a, b = (searches.get(sample.name) for sample in (verdict.a, verdict.b))
        if a and b and (spread := _spread(verdict, a, b)):
            spreads.append((verdict, spread, len(a.trials)))
    spreads.sort(key=lambda item: not _is_undone(item[0], item[1]))
    sentences = [_spread_sentence(*item) for item in spreads[:MAX_TUNED_PAIRS]]
    for name, choice in choices.items():
        sentences += _choice_sentences(name, choice, rows[name].first_run.study.better)
    return sentences


def _choice(row: BoardRow) -> RecordedChoice | None:
    """Returns what tuning selected for a row, if its trials are recorded and it was selected."""
    choice = row.first_run.choice
    scored = choice is not None and any(trial.score is not None for trial in choice.trials)
    return choice if scored else None


def _is_tuned_by_metric(row: BoardRow) -> bool:
    """Returns whether a row was tuned by the metric that ranks it, on another split."""
    run = row.first_run
    metrics = (run.metric, run.plan.tuning_metric if run.plan else "")
    return len({metric.rpartition("/")[2] for metric in metrics}) == 1


def _is_search(choice: RecordedChoice) -> bool:
    return all(trial.name for trial in choice.trials)


def _spread(verdict: Verdict, a: RecordedChoice, b: RecordedChoice) -> TunedDifference | None:
    """Returns the intervals of a verdict over seeds and tunings, where both had a search."""
    half_width = verdict.half_width
    if verdict.difference is None or half_width is None:
        return None
    return tuned_difference(
        float(verdict.difference.mean),
        half_width,
        ([trial.score for trial in a.trials], [trial.score for trial in b.trials]),
        better=verdict.metric.better,
        level=verdict.level,
        same_trials=[*map(_declared, a.trials)] == [*map(_declared, b.trials)],
    )


def _declared(trial: TrialRecord) -> tuple[object, ...]:
    """Returns what identifies a trial of a search, without what follows from it."""
    settings = sorted(item for item in trial.overrides.items() if item[0] not in DERIVED_SETTINGS)
    return trial.name, trial.learning_rate, settings


def _spread_sentence(verdict: Verdict, spread: TunedDifference, n_trials: int) -> str:
    names = f"{verdict.a.name} - {verdict.b.name}"
    sentence = (
        f"{names} is {_format(spread.seeds)} over seeds, {_format(spread.tunings)} over tunings "
        f"({n_trials} trials resampled), and {_format(spread.total)} over both "
        f"({format_percent(verdict.level)})"
    )
    if _is_undone(verdict, spread):
        sentence += ": other trials could undo this claim"
    return f"{sentence}."


def _is_undone(verdict: Verdict, spread: TunedDifference) -> bool:
    """Returns whether a claim over seeds does not hold over seeds and tunings."""
    is_claim = verdict.kind in ("lower", "higher")
    return is_claim and spread.total.low <= 0 <= spread.total.high


def _format(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def _choice_sentences(name: str, choice: RecordedChoice, better: str) -> list[str]:
    """Returns what half the trials would have reached, and at which end the best one is."""
    scored = [trial for trial in choice.trials if trial.score is not None]
    best = best_trial(scored, better)
    sentences = [f"{line}." for line in describe_edges(name, choice.trials, best)]
    if not _is_search(choice) or best.score is None:
        return sentences
    direction: Direction = "higher" if better == "higher" else "lower"
    n_half = len(choice.trials) // 2
    half = expected_best([trial.score for trial in choice.trials], n_half, direction)
    if half is None:
        return sentences
    return [
        f"{name}: the best of {len(choice.trials)} tuning trials has {format_score(best.score)}; "
        f"of {n_half} random ones, the best is expected at {format_score(half)}.",
        *sentences,
    ]
