"""Contradictions between runs: what no two honest runs of one study can state.

They need no jax. A run that contradicts another one is shown and excluded with the reason; its row
is not ranked.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from protocol.records.run_record import RunRecord
from protocol.records.study_record import TUNING

# Fields that all runs of one plan declare alike.
PLAN_FIELDS = (
    *("axis", "metric", "better", "margin", "comparisons", "n_comparisons", "seeds"),
    *("reference", "is_paired", "looks", "tuning_seeds", "tuned_settings"),
    "earlier_stages",
)

# Columns that follow from the settings, the data and the code.
SETTINGS_COSTS = ("params", "active_params", "state_bytes", "training_flops", "decode_flops")
COST_TOLERANCE = 1e-6  # Relative difference within which two records of one cost agree.
MIN_CURVE_POINTS = 3  # Logged losses of which equal ones are no accident.


class Contradiction(NamedTuple):
    """A run whose files contradict each other or those of other runs."""

    folder: str
    reason: str


def mark_contradictions(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Returns the records, each with its contradictions to the others among its exclusions."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for folder, reason in find_contradictions(records):
        reasons[folder].append(reason)
    return [
        dataclasses.replace(
            record,
            exclusions=(
                *record.exclusions,
                *(f"{reason} ({record.folder})" for reason in reasons[record.folder]),
            ),
        )
        if record.folder in reasons
        else record
        for record in records
    ]


def find_contradictions(records: Sequence[RunRecord]) -> list[Contradiction]:
    """Returns all contradictions inside and between runs, by folder."""
    run_records = [record for record in records if not record.external_source]
    contradictions = [
        Contradiction(record.folder, reason)
        for record in run_records
        for reason in record.evidence.contradictions
    ]
    checks = (_shared_checkpoints, _equal_data, _equal_curves, _split_bytes, _unequal_costs)
    for check in (*checks, _declarations, _tuning_seeds, _other_starts):
        contradictions += check(run_records)
    return sorted(dict.fromkeys(contradictions))


def _shared_checkpoints(records: Sequence[RunRecord]) -> Iterable[Contradiction]:
    """Yields runs whose last checkpoint has the content of another run's.

    If the files show which one is the original, it is spared; times are no evidence, since whoever
    plants a copy writes them.
    """
    members: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        if record.evidence.checkpoint_hash:
            members[record.evidence.checkpoint_hash].append(record)
    for group in members.values():
        for record, other in _with_another(group, lambda r: r.run_id):
            if _is_original(record, group, lambda r: r.run_id):
                continue
            yield Contradiction(
                record.folder, f"its last checkpoint is that of {other.folder}, another run"
            )


def _equal_data(records: Sequence[RunRecord]) -> Iterable[Contradiction]:
    """Yields runs that saw the batches of another seed: the seed orders the data."""
    members: dict[tuple[int, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        if record.data_hashes and record.seed is not None:
            first = min(record.data_hashes)
            members[first, record.data_hashes[first]].append(record)
    for group in members.values():
        (usual, n_usual), *others = Counter(record.seed for record in group).most_common(2)
        is_tied = bool(others) and others[0][1] == n_usual
        for record, other in _with_another(group, lambda r: r.seed):
            if _is_original(record, group, lambda r: r.seed):
                continue
            if is_tied or record.seed != usual:
                yield Contradiction(
                    record.folder,
                    f"it saw the batches of {other.folder}, although its seed is {record.seed} and "
                    f"that of the other {other.seed}",
                )


def _equal_curves(records: Sequence[RunRecord]) -> Iterable[Contradiction]:
    """Yields runs whose losses are those of another seed at every logged step."""
    members: dict[tuple[tuple[float, float], ...], list[RunRecord]] = defaultdict(list)
    for record in records:
        if len(record.learning_curve) >= MIN_CURVE_POINTS and record.seed is not None:
            members[record.learning_curve].append(record)
    for group in members.values():
        for record, other in _with_another(group, lambda r: r.seed):
            if not _is_original(record, group, lambda r: r.seed):
                yield Contradiction(
                    record.folder,
                    f"its log has the losses of {other.folder} at every step, although its seed is "
                    f"{record.seed} and that of the other {other.seed}",
                )


def _split_bytes(records: Sequence[RunRecord]) -> Iterable[Contradiction]:
    """Yields runs that counted other bytes of a split than most runs on the same data."""
    counts: dict[tuple[str, str, str], list[tuple[float, RunRecord]]] = defaultdict(list)
    for record in records:
        for split, count in record.evidence.split_bytes.items():
            key = record.keys["data"], record.keys["evaluation"], split
            counts[key].append((count, record))
    for (_, _, split), items in counts.items():
        usual = Counter(count for count, _ in items).most_common(1)[0][0]
        for count, record in items:
            if count != usual:
                yield Contradiction(
                    record.folder,
                    f"it counts {count:,.0f} bytes of {split}, other runs on the same data "
                    f"{usual:,.0f}",
                )


def _unequal_costs(records: Sequence[RunRecord]) -> Iterable[Contradiction]:
    """Yields runs with other costs than most runs of the same settings and version of the code."""
    members: dict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    for record in records:
        key = record.identity, record.keys["data"], record.keys["tokenizer"], record.code_version
        members[key].append(record)
    for group in members.values():
        for name in SETTINGS_COSTS:
            values = [(r.costs[name], r) for r in group if name in r.costs]
            usual = Counter(value for value, _ in values).most_common(1)[0][0] if values else 0.0
            for value, record in values:
                if not math.isclose(value, usual, rel_tol=COST_TOLERANCE):
                    yield Contradiction(
                        record.folder,
                        f"it states {value:.6g} {name}, other runs of the same settings "
                        f"{usual:.6g}",
                    )


def _declarations(records: Sequence[RunRecord]) -> Iterable[Contradiction]:
    """Yields runs that do not declare what most runs of the same plan declare.

    Runs that are excluded for another reason do not count as others.
    """
    members: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        if record.study.plan and record.is_reported:
            members[record.study.plan].append(record)
    for plan, group in members.items():
        counted = [record for record in group if not record.exclusions] or group
        (usual, n_usual), *others = Counter(map(_declaration, counted)).most_common(2)
        is_tied = bool(others) and others[0][1] == n_usual
        for record in group:
            declared = _declaration(record)
            # Of two declarations that are equally common, neither is preferred.
            other = others[0][0] if is_tied and declared == usual else usual
            pairs = zip(PLAN_FIELDS, declared, other, strict=True)
            if differing := [name for name, mine, theirs in pairs if mine != theirs]:
                yield Contradiction(
                    record.folder,
                    f"other runs of its plan {plan[:12]} declare other {' and '.join(differing)}",
                )


def _declaration(record: RunRecord) -> tuple[object, ...]:
    fields = record.study._asdict()
    return tuple(fields[name] for name in PLAN_FIELDS)


def _tuning_seeds(records: Sequence[RunRecord]) -> Iterable[Contradiction]:
    """Yields reported runs whose seed served to select settings."""
    tuning: dict[str, set[int | None]] = defaultdict(set)
    for record in records:
        if record.study.role == TUNING and record.study.plan:
            tuning[record.study.plan].add(record.seed)
    for record in records:
        study = record.study
        if not record.is_reported or record.seed is None:
            continue
        if record.seed in study.tuning_seeds or record.seed in tuning.get(study.plan, ()):
            yield Contradiction(
                record.folder, f"its seed {record.seed} served to select settings, so it is biased"
            )


def _other_starts(records: Sequence[RunRecord]) -> Iterable[Contradiction]:
    """Yields runs that do not start from the last of the stages that they declare."""
    by_name = {(r.study.plan, Path(r.folder).name): r for r in records}
    for record in records:
        study = record.study
        if not study.earlier_stages or not record.is_reported:
            continue
        if not record.init_from:
            yield Contradiction(record.folder, "it declares earlier stages, but starts from none")
        elif start := by_name.get((study.plan, Path(record.init_from).name)):
            expected = (study.candidate, study.earlier_stages[-1], record.seed)
            if (start.study.candidate, start.study.stage, start.seed) != expected:
                yield Contradiction(
                    record.folder, f"it starts from {start.folder}, which is no stage of its plan"
                )


def _is_original(
    record: RunRecord, group: Sequence[RunRecord], key: Callable[[RunRecord], object]
) -> bool:
    """Returns whether the others of a group contradict their own files, and this run does not.

    A copy under another run_id has a manifest of the run that it was copied from; one under another
    seed has a log that its checkpoint contradicts.
    """
    return not record.evidence.contradictions and all(
        other.evidence.contradictions for other in group if key(other) != key(record)
    )


def _with_another(
    group: Sequence[RunRecord], key: Callable[[RunRecord], object]
) -> Iterable[tuple[RunRecord, RunRecord]]:
    """Yields each run of a group with the first run whose key is another one, if any is."""
    for record in group:
        other = next((o for o in group if key(o) != key(record)), None)
        if other is not None:
            yield record, other
