"""The board of an isoFLOP study: minima of curves are compared, not pairs of sizes."""

import json
import math
import re

import board_runs
import numpy as np
import pytest
from scipy import stats

from protocol.board import export, sentences
from protocol.board.board import make_board
from protocol.board.isoflop_curves import add_surfaces, agree
from protocol.records.load import load_records
from protocol.statistics.hypothesis_tests import Difference
from protocol.statistics.sample import CandidateSample
from protocol.statistics.verdict import MetricSpec, compare_candidates

LENGTHS = (32, 16, 8, 4, 2, 1)  # In 25,600 tokens: the smallest size sees the most.
SIZES = tuple(4_000_000 / length for length in LENGTHS)
PLANNED = {"comparisons": [["mamba2", "dense"]], "n_comparisons": 3, "margin": 0.01}
FLOPS = 6.144e11
DENSE, MAMBA = (2.0, 0.7e6), (1.9, 0.6e6)  # loss and size at the minimum of the first budget


def loss(minimum, size, tokens):
    """A law with both terms equally steep at the minimum."""
    height, best = minimum
    return (
        height + 0.4 * (size / best) ** -0.3 + 0.12 / 0.35 * (tokens * best / 1.024e11) ** -0.35
    ) - (0.4 + 0.12 / 0.35)


def curve(root, name, minimum, rows=range(6), seeds=(0, 1), mixer="", doubling=0, noise=1, **study):
    """A budget of 4 ^ doubling times the first, at sizes of 2 ^ doubling times the first ones."""
    rng = np.random.default_rng(len(name) + doubling)
    own = noise * 1e-3 * rng.normal(size=6)  # of each size
    for i in rows:
        length = LENGTHS[i] * 2**doubling
        size, tokens = int(SIZES[i] * 2**doubling), 25_600 * length
        for seed in seeds:
            value = loss(minimum, size, tokens) + own[i] + noise * 1e-3 * (1 if seed else -1)
            board_runs.run(
                *(root / f"{name}-{doubling}-{i}-{seed}", name, seed, value),
                flops=FLOPS * 4**doubling / tokens,
                train={"steps": 100 * length},
                log={"every": 10 * length},
                non_embedding_params=size,
                cost={"params": 20_000_000, "active_params": 20_000_000},
                model={"width": size, "layers": [f"{mixer or name}+mlp"]},
                study=PLANNED
                | {"value": FLOPS * 4**doubling, "isoflop_curve": f"only-{FLOPS * 4**doubling:g}"}
                | {"seeds": [0, 1]}
                | study,
            )


def study(root, name, minimum, **changes):
    """Three budgets."""
    for doubling in range(3):
        curve(root, name, minimum, doubling=doubling, **changes)


def groups(root):
    """The board and its groups."""
    found = make_board(*load_records([root]))
    return found, [group for family in found.comparable_sets for group in family.groups]


def only(root):
    found, (group,) = groups(root)
    return found, group


def least(group, name):
    """By numpy: size, loss and the error of that, of a parabola through one point a size."""
    rows = [row for row in group.rows if row.first_run.study.candidate == name]
    x = np.log([row.first_run.costs["active_non_embedding_params"] for row in rows])
    y = [np.mean(row.sample.values) for row in rows]
    centre = x.mean()
    (c, b, a), covariance = np.polyfit(x - centre, y, 2, cov=True)
    best = -b / (2 * c)
    at = np.array([best**2, best, 1])
    return math.exp(centre + best), a + b * best + c * best**2, math.sqrt(at @ covariance @ at)


def height_at(group, name, log_size):
    """By numpy: the parabola through one point a size."""
    rows = [row for row in group.rows if row.first_run.study.candidate == name]
    x = np.log([row.first_run.costs["active_non_embedding_params"] for row in rows])
    return np.polyval(np.polyfit(x, [np.mean(row.sample.values) for row in rows], 2), log_size)


def test_candidates_are_compared_at_their_minima(tmp_path):
    study(tmp_path, "dense", DENSE)
    study(tmp_path, "mamba2", MAMBA)
    found, all_groups = groups(tmp_path)
    assert len(all_groups) == 3
    for group in all_groups:
        (verdict,) = group.verdicts
        assert verdict.kind == "lower" and verdict.remark.startswith("the surfaces differ by -0.1")
    group = all_groups[0]
    assert len(group.rows) == 12 and all(row.rank is None for row in group.rows)
    assert [c.candidate for c in group.curves] == ["mamba2", "dense"]  # the better first
    for one, true in zip(group.curves, (MAMBA, DENSE), strict=True):
        size, height, error = least(group, one.candidate)
        assert one.minimum.params == pytest.approx(size, rel=1e-6)
        assert one.minimum.loss == pytest.approx(height, rel=1e-9)
        assert one.minimum.standard_error == pytest.approx(error, rel=1e-6)
        assert one.minimum.df == 3  # six sizes, whatever the seeds
        assert one.optimum.params_interval.low < true[1] < one.optimum.params_interval.high
        assert one.optimum.df == 13
        assert one.optimum.loss == pytest.approx(true[0], abs=2e-3)
    (verdict,) = group.verdicts  # one pair of minima, not 66 of sizes
    assert verdict.is_declared and not group.is_exploratory
    (_, left, error), (_, right, other) = least(group, "mamba2"), least(group, "dense")
    assert verdict.difference.mean == pytest.approx(left - right)
    t = abs(left - right) / math.hypot(error, other)
    tail = stats.t.sf(t, float(verdict.difference.claim_df))
    assert verdict.p == pytest.approx(3 * 2 * tail, rel=1e-3)  # the parabolas are the less sure
    assert verdict.scope == "at the minima of their curves at 6.14e11 FLOPs"
    head = sentences.summarize_group(group, found.comparable_sets[0])
    assert (
        head.verdict == "Candidates are compared at the minima of their curves, not size by size."
    )
    size, height, _ = least(group, "mamba2")
    pattern = (
        r"The parabola through the 6 sizes of mamba2 has its minimum, ([\d.]+), at ([\d.]+)k.*"
        r"; the surface .* has its minimum at this budget, ([\d.]+), at ([\d.]+)k"
    )
    numbers = re.match(pattern, head.comparisons[0]).groups()
    parabola, parabola_size, surface, surface_size = map(float, numbers)
    assert parabola == pytest.approx(height, abs=1e-4)
    assert 1000 * parabola_size == pytest.approx(size, rel=1e-2)
    assert surface == pytest.approx(MAMBA[0], abs=2e-3)  # the law that made the points
    assert 1000 * surface_size == pytest.approx(MAMBA[1], rel=0.1)
    assert verdict.sentence.replace("+-", "±") in head.comparisons[2]
    assert "(98.3 %, adjusted for 3 comparisons, 6 sizes of each, Welch)" in head.comparisons[2]
    assert head.differences == (
        "mamba2 and dense differ in model.layers. The sizes of a curve differ in train.steps, "
        "model.width."
    )
    least_size, tokens = size / least(group, "dense")[0], one.minimum.tokens
    found_ratio = group.curves[0].minimum.tokens / tokens
    assert head.costs[1] == (
        f"At its minimum, mamba2 has {least_size:.2f} x the parameters (active, without embedding "
        f"and head) and {found_ratio:.2f} x the tokens that dense has at its minimum."
    )
    assert head.costs[2] == (  # 12 runs of 6.144e11 FLOPs; the seconds are those of the test runs
        "The studies of the 6 sizes of mamba2 cost 7.37e12 FLOPs and 21 min 0 s."
    )
    assert len(head.costs) == 4 and not any(row.problems for row in group.rows)
    assert group.problems == ()
    assert any("rows of a curve differ in size" in text for text in head.confidence)
    across = found.comparable_sets[0].across
    assert len(across.steps) == 3 and all(s.accuracy.n_same == 1 for s in across.steps)
    assert across.sentences[0].startswith(
        "The order by bits per byte on test is the same at 6.14e11 training FLOPs and at 2.46e12 "
        "training FLOPs for 1 of 1 pair of candidates: decision accuracy 1 "
    )
    assert "(the best first, not tested) is mamba2, dense from " in across.sentences[3]
    for place in (p for p in across.places if p.cost == "6.14e11 training FLOPs"):
        log_size = 0.5 * math.log(1.024e11 / place.ratio)  # N D is 1.024e11 in all runs.
        heights = [height_at(group, name, log_size) for name in place.candidates]
        assert place.is_curve and heights == sorted(heights)
    said = json.loads(json.dumps(export.to_json_tree(found)))["comparable_sets"][0]["groups"][0]
    assert [m["candidate"] for m in said["minima"]] == ["mamba2", "dense"]
    low, high = said["minima"][1]["surface"]["params_interval"]
    assert low < 0.7e6 < high
    assert "through the 6 sizes of mamba2" in export.to_html(
        found
    ) and "minima" in export.to_markdown(found)


def test_sizes_off_the_optimum_are_named_and_give_no_claim(tmp_path):
    """One law; quiet seeds; the sizes of one candidate are three times off the optimum."""
    study(tmp_path, "dense", DENSE, noise=0.01, margin=0.0)
    study(
        tmp_path, "mamba2", (2.0, 2.1e6), noise=0.01, margin=0.0
    )  # the same law on another scale of sizes
    for group in groups(tmp_path)[1]:
        (verdict,) = group.verdicts
        assert verdict.kind == "inconclusive"
        (warning,) = (text for text in group.problems if text.startswith("mamba2: its minimum"))
        assert "outside the middle third" in warning
        (ratio,) = re.findall(
            r"center the sizes on it with tokens_per_param={'mamba2': (\S+)}", warning
        )
        (mamba,) = (curve for curve in group.curves if curve.candidate == "mamba2")
        # The plan takes the root of C / 6 ratio, whatever share of C the head takes.
        planned = math.sqrt(mamba.minimum.budget / (6 * float(ratio)))
        assert planned == pytest.approx(mamba.minimum.params, rel=0.01)
        headed = mamba._replace(minimum=mamba.minimum._replace(tokens=mamba.minimum.tokens / 2))
        assert headed.warnings == mamba.warnings


@pytest.mark.parametrize(
    ("left", "right", "kind", "remark"),
    [
        (-0.02, -0.021, "lower", "the surfaces differ by -0.021"),
        (-0.02, 0.001, "inconclusive", "the two fits disagree, by 0.021: the parabolas differ by "),
        (-0.02, 0.02, "inconclusive", "the two fits disagree, by 0.04: "),
        (0.001, -0.02, "inconclusive", "(not claimed), the surfaces by -0.02 (claimed)"),
        (0.001, 0.001, "inconclusive", "the surfaces differ by 0.001"),
    ],
)
def test_a_claim_needs_both_fits(left, right, kind, remark):
    samples = [CandidateSample("a", (0.0, 1.0, 2.0)), CandidateSample("b", (0.0, 1.0, 2.5))]

    def fit(mean):
        error, df = np.asarray(0.002), np.asarray(20.0)
        difference = Difference(np.asarray(mean), error, df, df)
        (verdict,) = compare_candidates(
            samples, [("a", "b")], MetricSpec(), differences=[difference]
        )
        return verdict

    verdict = agree(fit(left), fit(right))
    assert verdict.kind == kind and remark in verdict.sentence
    assert verdict.p == max(fit(left).p, fit(right).p)


def test_a_curve_without_a_minimum_is_part_of_the_surface(tmp_path):
    """Otherwise the result would select the budgets that the surface is fitted to."""
    study(tmp_path, "dense", DENSE)
    curves = [group.curves[0] for group in groups(tmp_path)[1]]
    edge = curves[0].minimum._replace(is_at_edge=True)
    changed = [curves[0]._replace(minimum=edge, problem="no minimum inside"), *curves[1:]]
    again = add_surfaces([curve._replace(optimum=None) for curve in changed])
    assert [curve.optimum for curve in again] == [curve.optimum for curve in curves]


def test_without_further_budgets_nothing_is_claimed(tmp_path):
    curve(tmp_path, "dense", DENSE)
    curve(tmp_path, "mamba2", MAMBA)
    (verdict,) = only(tmp_path)[1].verdicts
    assert verdict.kind == "inconclusive" and verdict.p == 1.0
    assert verdict.sentence.endswith(
        "; a claim needs a surface through all budgets beside the parabolas"
    )
    text = only(tmp_path)[1].curves[0].sentence
    assert "no surface: 6 points of 6 sizes" in text and "give 8 points or more" in text


def test_a_minimum_at_the_edge_is_compared_with_nothing(tmp_path):
    curve(tmp_path, "dense", DENSE)
    curve(tmp_path, "mamba2", (1.9, 40e6))
    found, group = only(tmp_path)
    assert not group.verdicts
    assert group.problems == (
        "mamba2: no minimum inside the sizes trained, of which 4M is the best; center the sizes "
        "on it with tokens_per_param={'mamba2': 0.0064}",  # 6.144e11 / (6 (4e6)^2)
    )
    assert [bool(one.sentence) for one in group.curves] == [True, False]
    head = sentences.summarize_group(group, found.comparable_sets[0])
    assert "sizes of dense" in head.comparisons[0] and head.comparisons[1].startswith(
        "No claim is possible"
    )


def test_half_a_curve_is_no_curve(tmp_path):
    """A size or a seed that is not there could have been left out for its result."""
    curve(tmp_path, "dense", DENSE, rows=range(4))
    curve(tmp_path, "mamba2", MAMBA)
    _, group = only(tmp_path)
    assert not group.verdicts and "has 4 sizes, must have 5" in group.problems[0]
    curve(tmp_path, "dense", DENSE, rows=range(4, 6), seeds=(0,))
    _, group = only(tmp_path)
    assert not group.verdicts
    assert any(text.startswith("dense: its curve is not complete") for text in group.problems)
    curve(tmp_path, "dense", DENSE, rows=range(4, 6))
    assert len(only(tmp_path)[1].verdicts) == 1


def test_copies_under_two_names_are_not_told_apart(tmp_path):
    for name in ("dense", "mamba2"):
        curve(tmp_path, name, DENSE, mixer="same")
    (verdict,) = only(tmp_path)[1].verdicts
    assert verdict.kind == "duplicate"


def test_curves_of_other_plans_are_not_compared(tmp_path):
    curve(tmp_path, "dense", DENSE)
    curve(tmp_path, "mamba2", MAMBA, plan="q" * 64)
    _, group = only(tmp_path)
    assert len(group.curves) == 2 and not group.verdicts
