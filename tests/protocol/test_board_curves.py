"""The board of an isoFLOP study: minima of curves are compared, not pairs of sizes."""

import json
import math

import board_runs
import numpy as np
import pytest
from scipy import stats

from protocol.board import export, sentences
from protocol.board.board import make_board
from protocol.records.load import load_records

SIZES = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)
PLANNED = {
    "isoflop_curve": "only-1.54e11",
    "comparisons": [["mamba2", "dense"]],
    "n_comparisons": 3,
    "margin": 0.01,
    "seeds": [0, 1],
}
DENSE, MAMBA = (2.0, 1.2e6), (1.9, 0.9e6)  # loss and size at the minimum


def loss(minimum, size, seed):
    """A parabola in log N, and 2e-3 between seeds."""
    height, best = minimum
    return height + 0.05 * math.log(size / best) ** 2 + 1e-3 * (1 if seed else -1)


def curve(root, name, minimum, sizes=SIZES, seeds=(0, 1), mixer="", **study):
    for size in sizes:
        for seed in seeds:
            board_runs.run(
                *(root / f"{name}-{size}-{seed}", name, seed, loss(minimum, size, seed)),
                **{
                    "non_embedding_params": size,
                    "params": 1_000_000,
                    "model": {"width": size, "layers": [f"{mixer or name}+mlp"]},
                },
                study=PLANNED | study,
            )


def only(root):
    """The board and its only group."""
    found = make_board(*load_records([root]))
    ((group,),) = (family.groups for family in found.comparable_sets)
    return found, group


def least(minimum):
    """By numpy: size, loss, the error of that, and its degrees of freedom."""
    x = np.log(np.repeat(SIZES, 2))
    y = np.array([loss(minimum, size, seed) for size in SIZES for seed in (0, 1)])
    centre = x.mean()
    (c, b, a), covariance = np.polyfit(x - centre, y, 2, cov=True)
    best = -b / (2 * c)
    at = np.array([best**2, best, 1])
    return math.exp(centre + best), a + b * best + c * best**2, math.sqrt(at @ covariance @ at)


def test_candidates_are_compared_at_their_minima(tmp_path):
    curve(tmp_path, "dense", DENSE)
    curve(tmp_path, "mamba2", MAMBA)
    found, group = only(tmp_path)
    assert len(group.rows) == 10 and all(row.rank is None for row in group.rows)
    assert [c.candidate for c in group.curves] == ["mamba2", "dense"]  # the better first
    for one, minimum in zip(group.curves, (MAMBA, DENSE), strict=True):
        size, height, error = least(minimum)
        assert one.minimum.params == pytest.approx(size, rel=1e-6)
        assert one.minimum.loss == pytest.approx(height, rel=1e-9)
        assert one.minimum.standard_error == pytest.approx(error, rel=1e-6)
    (verdict,) = group.verdicts  # one pair of minima, not 45 of sizes
    assert verdict.kind == "lower" and verdict.is_declared and not group.is_exploratory
    assert verdict.difference.mean == pytest.approx(least(MAMBA)[1] - least(DENSE)[1])
    assert verdict.difference.df == pytest.approx(
        14, rel=1e-3
    )  # equal scatter: twice 10 runs less 3
    t = abs(verdict.difference.mean) / math.hypot(least(MAMBA)[2], least(DENSE)[2])
    assert verdict.p == pytest.approx(min(1, 3 * 2 * stats.t.sf(t, 14)), rel=0.02)  # of three
    assert verdict.scope == "at the minima of their curves at 1.54e11 FLOPs"
    head = sentences.summarize_group(group, found.comparable_sets[0])
    assert (
        head.verdict == "Candidates are compared at the minima of their curves, not size by size."
    )
    assert head.comparisons[0].startswith(
        "The curve of mamba2 over 5 sizes has its minimum, 1.9000, at 900k active"
    )
    assert verdict.sentence.replace("+-", "±") in head.comparisons[2]
    assert group.problems == ()
    said = json.loads(json.dumps(export.to_json_tree(found)))["comparable_sets"][0]["groups"][0]
    assert [m["candidate"] for m in said["minima"]] == ["mamba2", "dense"]
    assert said["minima"][1]["params_interval"][0] < 1.2e6 < said["minima"][1]["params_interval"][1]
    assert "The curve of mamba2" in export.to_html(found) and "minima" in export.to_markdown(found)


def test_a_minimum_at_the_edge_is_compared_with_nothing(tmp_path):
    curve(tmp_path, "dense", DENSE)
    curve(tmp_path, "mamba2", (1.9, 9e6))
    found, group = only(tmp_path)
    assert not group.verdicts
    assert group.problems == (
        "mamba2: no minimum inside the sizes trained, of which 4M is the best; train larger or "
        "smaller ones",
    )
    assert [bool(one.sentence) for one in group.curves] == [True, False]
    head = sentences.summarize_group(group, found.comparable_sets[0])
    assert head.comparisons[0].startswith("The curve of dense") and head.comparisons[1].startswith(
        "No claim is possible"
    )


def test_half_a_curve_is_no_curve(tmp_path):
    """A size or a seed that is not there could have been left out for its result."""
    curve(tmp_path, "dense", DENSE, sizes=SIZES[:4])
    curve(tmp_path, "mamba2", MAMBA)
    _, group = only(tmp_path)
    assert not group.verdicts and "has 4 sizes, must be 5" in group.problems[0]
    curve(tmp_path, "dense", DENSE, sizes=SIZES[4:], seeds=(0,))
    _, group = only(tmp_path)
    assert not group.verdicts
    assert any(text.startswith("dense: its curve is not complete") for text in group.problems)
    curve(tmp_path, "dense", DENSE, sizes=SIZES[4:])
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
