"""What a reader should know before believing a group: what was not declared, and what differs."""

import math
import statistics
from collections import defaultdict

from protocol.board.groups import Group
from protocol.board.study_cost import run_joules
from protocol.records.series import JOULES_PER_KWH

MAX_MARGIN_SIGMAS = 3.0  # Standard deviations of seeds that a margin should not exceed.


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
        ("of the code", {run.code_version for run in runs}),
        ("of packages", {run.evidence.packages for run in runs}),
    ):
        if len(values) > 1:
            sentences.append(
                f"The runs were trained with {len(values)} versions {noun}, which may change "
                "results; the table has those of each run."
            )
    for row in group.rows:
        seeds = [run.seed for run in row.runs if run.seed is not None]
        is_declared = any(run.study.seeds for run in row.runs)
        if row.is_ranked and not is_declared and seeds and sorted(seeds) != [*range(len(seeds))]:
            names = ", ".join(map(str, sorted(seeds)))
            sentences.append(f"{row.name} has the seeds {names}, which no plan declares.")
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


def tokenizer_sentences(group: Group) -> list[str]:
    """Returns what a lossy tokenizer of these runs means, with the runs' own shares."""
    runs = [run for row in group.rows for run in row.runs]
    return sorted({run.evidence.lossy_tokenizer for run in runs} - {""})
