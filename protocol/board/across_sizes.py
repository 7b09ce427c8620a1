"""What holds across the sizes or budgets of a set: decision accuracy, places by tokens/parameters.

`protocol/statistics/decision.py` has the definition of decision accuracy. A candidate is the rows
of one name, one in each group. On isoFLOP curves it is compared at its minimum.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from formatting import format_scientific
from protocol.board.columns import AXIS_LABELS, metric_label, pluralize
from protocol.board.groups import Group
from protocol.board.isoflop_curves import IsoflopCurve
from protocol.board.rows import BoardRow
from protocol.board.score_signal import comparable_rows, has_one_origin, run_scores
from protocol.statistics.decision import (
    DecisionAccuracy,
    SizeScores,
    decision_accuracies,
    size_scores,
)
from protocol.statistics.verdict import MetricSpec

MIN_RATIO_STEP = 0.05  # Relative difference from which ratios of tokens to parameters differ.
N_RATIOS = 24  # Ratios of tokens to parameters at which curves are compared.
MAX_SENTENCES = 6
MAX_CANDIDATES = 100  # Candidates of a group whose pairs are compared at most.

Array = np.ndarray


class DecisionStep(NamedTuple):
    """The decision accuracy of a score from one group to another."""

    score: str
    source: str  # The cost at which the candidates are ordered first, in words.
    target: str
    candidates: tuple[str, ...]
    accuracy: DecisionAccuracy

    @property
    def sentence(self) -> str:
        """The accuracy in words."""
        a, (low, high) = self.accuracy, self.accuracy.interval
        return (
            f"The order by {metric_label(self.score)} is the same at {self.source} and at "
            f"{self.target} for {a.n_same} of {pluralize(a.n_pairs, 'pair')} of candidates: "
            f"decision accuracy {a.accuracy:.2g} (95 %: {low:.2g} to {high:.2g}; significant at "
            f"both for {pluralize(a.n_decided, 'pair')})."
        )

    @property
    def json_tree(self) -> dict[str, object]:
        """The step as leaderboard.json has it."""
        return {
            **{"score": self.score, "from": self.source, "to": self.target},
            "candidates": list(self.candidates),
            "accuracy": self.accuracy.accuracy,
            "interval": list(self.accuracy.interval),
            **self.accuracy._asdict(),
        }


class RatioOrder(NamedTuple):
    """The candidates at one ratio of tokens to parameters, the best mean first."""

    cost: str  # The matched cost, in words.
    ratio: float
    candidates: tuple[str, ...]
    places: tuple[str, ...]  # As the board prints them; blank: not ranked.
    is_curve: bool = False  # Whether the order is that of fitted isoFLOP curves.


class AcrossSizes(NamedTuple):
    """What the groups of a comparable set say together."""

    metric: str  # The metric by which the set is ranked.
    steps: tuple[DecisionStep, ...]
    places: tuple[RatioOrder, ...]
    problem: str = ""  # Why there is no decision accuracy.

    @property
    def other_steps(self) -> tuple[DecisionStep, ...]:
        """The steps of the scores beside the ranked metric."""
        return tuple(step for step in self.steps if step.score != self.metric)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The conclusions: of the ranked metric, then places by tokens a parameter."""
        steps = [step.sentence for step in self.steps if step.score == self.metric]
        if self.problem:
            steps = [f"There is no decision accuracy: {self.problem}."]
        return (*steps[:MAX_SENTENCES], *[*_ratio_sentences(self.places)][:MAX_SENTENCES])

    @property
    def json_tree(self) -> dict[str, object]:
        """The conclusions as leaderboard.json has them."""
        return {
            "sentences": list(self.sentences),
            "decision_accuracy": [step.json_tree for step in self.steps],
            "places_by_tokens_per_param": [order._asdict() for order in self.places],
        }


def compare_groups(
    groups: Sequence[Group], metric: MetricSpec, metric_name: str
) -> AcrossSizes | None:
    """Returns what the groups of a comparable set say together; None of a single cost."""
    priced = [group for group in groups if group.value is not None]
    if len(priced) < 2:
        return None
    places = [order for group in priced for order in _group_places(group, metric)]
    tables = [_candidate_estimates(group) for group in priced]
    n_candidates = max(map(len, tables))
    if n_candidates > MAX_CANDIDATES:
        problem = f"{n_candidates} candidates at one cost, at most {MAX_CANDIDATES} are compared"
        return AcrossSizes(metric_name, (), tuple(places), problem)
    metric_steps = [*_decision_steps(metric_name, priced, tables)]
    problem = (
        "" if metric_steps else "no two candidates have a mean at two costs, under the same names"
    )
    steps = (*metric_steps, *_score_steps(priced, metric_name))
    return AcrossSizes(metric_name, steps, tuple(places), problem)


def _score_steps(groups: Sequence[Group], metric_name: str) -> Iterator[DecisionStep]:
    """Yields the steps of the scores beside the metric that have a signal in some group."""
    names = {s.score for g in groups for s in g.signals if s.result is not None} - {metric_name}
    for name in sorted(names):
        tables: list[dict[str, SizeScores]] = []
        for group in groups:
            members = {} if group.curves else _unique_rows(group)
            values = {key: run_scores(row, name) for key, row in members.items()}
            tables.append({key: size_scores([v]) for key, v in values.items() if v})
        if has_one_origin([row for group in groups for row in group.rows], name):
            yield from _decision_steps(name, groups, tables)


def _decision_steps(
    score: str, groups: Sequence[Group], tables: Sequence[Mapping[str, SizeScores]]
) -> Iterator[DecisionStep]:
    """Yields the accuracy from each group to the next one, and from the first to the last."""
    pairs = [*itertools.pairwise(range(len(groups)))]
    if len(groups) > 2:
        pairs.append((0, len(groups) - 1))
    for a, b in pairs:
        names = tuple(name for name in tables[a] if name in tables[b])
        if len(names) < 2:
            continue
        sizes = [_stack([tables[i][name] for name in names]) for i in (a, b)]
        (accuracy,) = decision_accuracies(sizes)
        yield DecisionStep(score, _cost_label(groups[a]), _cost_label(groups[b]), names, accuracy)


def _candidate_estimates(group: Group) -> dict[str, SizeScores]:
    """Returns the metric of each candidate, of its row or of the minimum of its curve."""
    if not group.curves:
        rows = _unique_rows(group)
        return {name: size_scores([row.sample.values]) for name, row in rows.items()}
    estimates = {}
    for curve in group.curves:
        if curve.minimum is not None and not curve.problem:
            m = curve.minimum
            values = (np.array([float(x)]) for x in (m.loss, m.standard_error, m.df))
            estimates[curve.candidate] = SizeScores(*values)
    return estimates


def _stack(estimates: Sequence[SizeScores]) -> SizeScores:
    return SizeScores(*(np.concatenate(parts) for parts in zip(*estimates, strict=True)))


def _unique_rows(group: Group) -> dict[str, BoardRow]:
    """Returns the comparable row of each candidate that has one in the group, by name."""
    rows: dict[str, list[BoardRow]] = {}
    for row in comparable_rows(group.rows):
        rows.setdefault(row.candidate or row.name, []).append(row)
    return {name: members[0] for name, members in rows.items() if len(members) == 1}


def _cost_label(group: Group) -> str:
    axis = AXIS_LABELS.get(group.axis, group.axis.replace("_", " "))
    return f"{format_scientific(group.value or 0.0)} {axis}"


def _group_places(group: Group, metric: MetricSpec) -> Iterator[RatioOrder]:
    """Yields the order of the candidates of a group at its ratio, or along its isoFLOP curves."""
    if group.curves:
        yield from _curve_places(group)
        return
    ratio, rows = group.reference.costs.get("tokens_per_param"), _unique_rows(group)
    if ratio and len(rows) > 1:
        sign = 1 if metric.better == "lower" else -1
        ordered = sorted(rows, key=lambda name: (sign * (rows[name].sample.mean or 0.0), name))
        places = tuple(rows[name].place_text for name in ordered)
        yield RatioOrder(_cost_label(group), ratio, tuple(ordered), places)


def _curve_places(group: Group) -> Iterator[RatioOrder]:
    """Yields the order of fitted curves at ratios that all of them have, where it changes."""
    curves = [c for c in group.curves if c.minimum is not None and not c.problem]
    points = [_curve_points(curve) for curve in curves]
    if len(curves) < 2 or any(p.shape[1] < 2 for p in points):
        return
    low, high = max(p[0].min() for p in points), min(p[0].max() for p in points)
    if not low < high:
        return
    grid = np.linspace(low, high, N_RATIOS)
    losses = np.stack([_curve_losses(c, p, grid) for c, p in zip(curves, points, strict=True)])
    last: tuple[int, ...] = ()
    for x, order in zip(grid, losses.argsort(axis=0, kind="stable").T, strict=True):
        if (ordered := tuple(order.tolist())) != last:
            names = tuple(curves[i].candidate for i in ordered)
            places = ("",) * len(names)
            yield RatioOrder(_cost_label(group), float(np.exp(x)), names, places, is_curve=True)
        last = ordered


def _curve_points(curve: IsoflopCurve) -> Float[Array, "2 k"]:
    """Returns log(tokens a parameter) and log(N) of the sizes of a curve, by rising ratio."""
    pairs = set()
    for row in curve.rows:
        costs = row.first_run.costs
        size, tokens = costs.get("active_non_embedding_params"), costs.get("tokens")
        if size and tokens:
            pairs.add((math.log(tokens / size), math.log(size)))
    return np.array(sorted(pairs)).T if pairs else np.zeros((2, 0))


def _curve_losses(
    curve: IsoflopCurve, points: Float[Array, "2 k"], grid: Float[Array, " g"]
) -> Float[Array, " g"]:
    if curve.minimum is None:
        return np.full_like(grid, np.nan)
    losses: Array = curve.minimum.loss_at(np.exp(np.interp(grid, *points)))
    return losses


def _ratio_sentences(places: Sequence[RatioOrder]) -> Iterator[str]:
    """Yields the order at each ratio of tokens to parameters, where there are several ratios."""
    curves: dict[str, list[RatioOrder]] = {}
    for order in places:
        if order.is_curve:
            curves.setdefault(order.cost, []).append(order)
    for cost, of_cost in curves.items():
        first, *later = of_cost
        texts = [f"{', '.join(first.candidates)} from {first.ratio:.3g} tokens a parameter on"]
        texts += [f"{', '.join(p.candidates)} from {p.ratio:.3g} on" for p in later]
        yield (
            f"At {cost}, the order of the fitted curves (the best first, not tested) is "
            f"{'; '.join(texts)}."
        )
    rows = sorted((p for p in places if not p.is_curve), key=lambda p: p.ratio)
    if len(rows) > 1 and rows[-1].ratio > rows[0].ratio * (1 + MIN_RATIO_STEP):
        texts = [f"at {p.ratio:.3g} ({p.cost}) {_place_list(p)}" for p in rows]
        yield f"By tokens a parameter, the order of the means is {'; '.join(texts)}."


def _place_list(order: RatioOrder) -> str:
    pairs = zip(order.candidates, order.places, strict=True)
    return ", ".join(f"{name} ({text})" if text else name for name, text in pairs)
