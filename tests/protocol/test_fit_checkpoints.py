"""Checkpoints of a run as further points of a law: their gap, and a bootstrap by run."""

import dataclasses
import json

import board_runs
import numpy as np
import pytest

from errors import DataError
from protocol.fit import __main__ as command
from protocol.fit.describe import describe, to_json
from protocol.fit.points import PointSet, read_runs
from protocol.fit.report import FitSettings, fit_points
from protocol.records.load import load_records
from protocol.records.run_checkpoints import read_checkpoints
from protocol.statistics.isoflop import fit_minima
from protocol.statistics.scaling_law import Point, ScalingLaw, find_optimum, fit_law, run_indices
from protocol.statistics.size_means import average_seeds
from protocol.statistics.surface import fit_surface

LAW = ScalingLaw(E=1.5, A=120.0, alpha=0.33, B=300.0, beta=0.31)
GAP = 0.12
SHARES = (0.3, 0.45, 0.6)  # Of the steps of a run: its checkpoints before the cooldown.


def trained(sizes=(1e6, 2e6, 4e6, 8e6), ratios=(10, 40), rng=None, own=0.0, step=0.0):
    """Runs with three checkpoints each; `own` is the error of a run, `step` that of a point."""
    points, number = [], 0
    for n in sizes:
        for ratio in ratios:
            number += 1
            common = own * rng.normal() if own else 0.0
            for share in (*SHARES, 1.0):
                noise = common + (step * rng.normal() if step else 0.0)
                early = int(share < 1)
                d = share * ratio * n
                points.append(
                    Point(n, d, LAW.loss(n, d) + GAP * early + noise, 0.0, 1.0, 0.0, number, early)
                )
    return points


def test_the_gap_before_the_cooldown_is_a_constant_of_its_own():
    points = trained()
    fit = fit_surface(points, n_resamples=2)
    assert fit.gap == pytest.approx(GAP, rel=1e-6)
    for name, true in LAW._asdict().items():
        assert fit.law._asdict()[name] == pytest.approx(true, rel=1e-4)
    assert fit.df == len(points) - 6
    ignored = fit_surface([p._replace(before_cooldown=0) for p in points], n_resamples=2)
    assert abs(ignored.law.E / LAW.E - 1) > 0.02 and ignored.gap_interval is None
    ends = fit_law(trained(ratios=(5, 20, 80)), n_resamples=1)
    assert ends.points_used == 12  # The Huber fit has no gap, and takes the ends of runs alone.
    assert ends.law.alpha == pytest.approx(LAW.alpha, rel=0.01)


def test_checkpoints_that_do_not_follow_the_law_are_refused_or_named():
    below = [p._replace(loss=p.loss - 1.5 * GAP * p.before_cooldown) for p in trained()]
    with pytest.raises(DataError, match="their gap is 0, its bound; leave them out"):
        fit_surface(below, n_resamples=1)
    settings = FitSettings(approaches=("surface",), n_resamples=40)
    for growth, said in ((0.0, "inside the interval"), (0.5, "outside the interval")):
        points = [
            p._replace(loss=p.loss + p.before_cooldown * growth * np.log10(p.params / 1e6))
            for p in trained(ratios=(5, 20, 80), rng=np.random.default_rng(3), own=1e-4)
        ]
        lines = describe(fit_points(PointSet("x", tuple(points), "x"), settings))
        (line,) = [text for text in lines if text.startswith("the ends of runs alone give")]
        assert said in line and ("trust the ends" in line) == (growth > 0)
        assert f"alpha {LAW.alpha:.2f}" in line


def test_points_of_one_run_are_one_cluster():
    points = [Point(1e6, d, 2.0, run=run) for d in (1e7, 2e7) for run in (1, 2)]
    points += [Point(2e6, 1e7, 2.0), Point(2e6, 2e7, 2.0)]
    assert run_indices(points).tolist() == [0, 1, 0, 1, 2, 3]
    means = average_seeds(points)
    assert means.clusters.tolist() == [0, 0, 1, 2] and means.is_clustered
    assert not average_seeds([p._replace(run=0) for p in points]).is_clustered


def test_the_bootstrap_by_run_covers_where_that_by_point_does_not():
    """Runs of 8 configurations with errors of their own; the law is fitted to their checkpoints."""
    rng, covered = np.random.default_rng(8), {"run": 0, "point": 0}
    true, n_studies = find_optimum(LAW, 1e15).params, 40
    for _ in range(n_studies):
        points = trained(ratios=(10, 20, 40), rng=rng, own=0.01, step=0.001)
        for kind in covered:
            used = points if kind == "run" else [p._replace(run=0) for p in points]
            fit = fit_surface(used, n_resamples=50)
            laws = [ScalingLaw(*row) for row in fit.size_laws.tolist()]
            values = [find_optimum(law, 1e15).params for law in laws]
            low, high = np.quantile(values, [0.025, 0.975])
            covered[kind] += low <= true <= high
    assert covered["run"] / n_studies > 0.85 > covered["point"] / n_studies, covered


def test_a_repeated_point_of_a_run_adds_nothing_to_the_huber_fit():
    rng = np.random.default_rng(9)
    points = [
        Point(n, r * n, LAW.loss(n, r * n) + 0.003 * rng.normal(), run=i)
        for i, (n, r) in enumerate([(n, r) for n in (1e6, 2e6, 4e6) for r in (5, 20, 80)], 1)
    ]
    one, three = (fit_law(points * count, n_resamples=20) for count in (1, 3))
    assert three.low.beta == pytest.approx(one.low.beta, rel=1e-3)
    assert three.high.beta == pytest.approx(one.high.beta, rel=1e-3)
    independent = fit_law([p._replace(run=0) for p in points * 3], n_resamples=20)
    assert independent.high.beta - independent.low.beta < 0.85 * (one.high.beta - one.low.beta)


def test_points_of_few_runs_have_no_intervals():
    points = [p._replace(run=1 + p.run % 7) for p in trained()]
    for fit in (fit_law, fit_surface):
        with pytest.raises(DataError, match="are of 7 independent runs, .* give points of 8 runs"):
            fit([p._replace(before_cooldown=0) for p in points])


def test_parabolas_take_the_ends_of_runs():
    points = []
    for budget in (1e12, 4e12):
        best = find_optimum(LAW, budget).params
        for number, n in enumerate(best * np.geomspace(0.3, 3, 6), 1 + len(points)):
            d = budget / 6 / n
            end = Point(n, d, LAW.loss(n, d), budget=budget, run=number)
            early = end._replace(
                tokens=d / 2, loss=LAW.loss(n, d / 2) + GAP, budget=0.0, before_cooldown=1
            )
            points += [end, early]
    settings = FitSettings(approaches=("2",), n_resamples=2)
    (result,) = fit_points(PointSet("x", tuple(points), "x"), settings).results
    assert not result.problem
    alone = fit_minima(p for p in points if not p.before_cooldown)
    assert [m[:6] for m in result.minima] == [m[:6] for m in alone]


def write_runs(root, schedule="wsd", gap=GAP):
    """Eight runs of 100 steps; the rate is full from step 10 to 60. Each has four scored steps."""
    number = 0
    for size in (200_000, 300_000, 450_000, 700_000):
        for length in (8, 32, 64):
            number += 1
            tokens = 100 * 4 * length
            value = LAW.loss(size, tokens)
            optimizer = {"schedule": schedule, "warmup": 0.1, "cooldown_fraction": 0.4}
            folder = board_runs.run(
                *(root / f"dense-{number}", "dense", 0, value),
                train={"seq_len": length},
                params=900_000,
                non_embedding_params=size,
                cost={"active_params": 900_000},
                optimizer=optimizer,
                model={"width": number},
                study={"seeds": []},
            )
            for step in (20, 50, 60, 80):
                scored = LAW.loss(size, tokens * step / 100) + gap
                score = {"name": "test/bits_per_byte", "value": scored, "weight": 1}
                record = {"task": "bits_per_byte", "version": 1, "step": step, "length": 64}
                board_runs.write(
                    folder / f"eval/{step}/bits_per_byte.json",
                    record | {"data": board_runs.DATA, "scores": [score]},
                )


def fit(folder, share=None):
    settings = FitSettings(approaches=("surface",), n_resamples=10)
    sources = read_runs([folder / "runs"], False, share)
    return [to_json(fit_points(source, settings)) for source in sources]


def test_scored_checkpoints_of_run_folders_are_points(tmp_path, capsys):
    write_runs(tmp_path / "runs")
    (report,) = fit(tmp_path, 0.5)
    argv = [str(tmp_path / "runs"), "--approach=surface", "--checkpoints=0.5", "--resamples=10"]
    assert command.main(argv) == 0
    out = capsys.readouterr().out
    assert out == "\n".join([*report["lines"], ""])
    assert report["n_points"] == 36 and len(report["runs"]) == 12
    assert "# dense: 12 runs and 24 of their checkpoints, test/bits_per_byte" in out
    assert "24 points are steps before the end of their runs, 24 of them before a cooldown" in out
    surface = report["fits"]["surface"]
    assert (
        surface["gap"] == pytest.approx(GAP, rel=1e-4) and "gap before the cooldown = 0.12" in out
    )
    assert surface["law"]["alpha"] == pytest.approx(LAW.alpha, rel=1e-3)
    reasons = [text for text in report["excluded"] if text.startswith("runs/dense-1 ")]
    assert reasons == [
        "runs/dense-1 at step 20: it is before step 35, from which on checkpoints count",
        "runs/dense-1 at step 80: it is in the cooldown, which begins at step 60",
    ]
    (plain,) = fit(tmp_path)
    assert plain["n_points"] == 12 and plain["fits"]["surface"]["gap"] is None


def test_the_schedule_decides_which_checkpoints_are_points(tmp_path):
    write_runs(tmp_path / "a/runs", "constant", gap=0.0)
    (report,) = fit(tmp_path / "a", 0.0)
    assert report["n_points"] == 60 and report["fits"]["surface"]["gap"] is None
    write_runs(tmp_path / "b/runs", "cosine")
    (report,) = fit(tmp_path / "b", 0.0)
    assert report["n_points"] == 12
    assert "under the schedule cosine its learning rate is between others" in report["excluded"][0]


def test_a_checkpoint_on_other_text_or_a_damaged_one_is_left_out(tmp_path):
    write_runs(tmp_path / "runs")
    for step, old, new in ((50, board_runs.DATA, "e" * 64), (60, "{", "{,")):
        path = tmp_path / f"runs/dense-1/eval/{step}/bits_per_byte.json"
        path.write_text(path.read_text().replace(old, new, 1))
    (report,) = fit(tmp_path, 0.5)
    excluded = [text for text in report["excluded"] if text.startswith("runs/dense-1 ")]
    assert report["n_points"] == 34 and "is not that of the last step" in excluded[1]
    assert "eval/60/bits_per_byte.json is damaged" in excluded[2]


def test_scores_without_their_hash_are_no_points_of_a_sealed_run(tmp_path):
    write_runs(tmp_path / "runs")
    (record, *_), _ = load_records([tmp_path])
    path = tmp_path / record.folder.partition("/")[2]
    assert len(read_checkpoints(path, record, 0.5).points) == 2
    sealed = dataclasses.replace(record, evidence=record.evidence._replace(is_sealed=True))
    points, excluded = read_checkpoints(path, sealed, 0.5)
    assert points == () and "is not as it was written; evaluate the step again" in excluded[1]


def test_runs_that_start_from_others_are_left_out(tmp_path):
    write_runs(tmp_path / "runs")
    path = tmp_path / "runs/dense-1/run.json"
    run = json.loads(path.read_text())
    run["flags"]["init_from"] = "runs/first"
    path.write_text(json.dumps(run))
    (report,) = fit(tmp_path)
    assert report["n_points"] == 11
    (reason,) = report["excluded"]
    assert (
        reason == "runs/dense-1: it starts from runs/first, whose tokens are not counted in its D"
    )


def test_a_table_may_name_runs_and_what_is_before_a_cooldown(tmp_path, capsys):
    lines = ["params,tokens,loss,run,before_cooldown"]
    lines += [f"{p.params},{p.tokens},{p.loss},{p.run},{p.before_cooldown}" for p in trained()]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    assert command.main([str(tmp_path / "x.csv"), "--approach=surface", "--resamples=5"]) == 0
    assert "gap before the cooldown = 0.12 (95 %" in capsys.readouterr().out
    for flag, message in (
        ("--checkpoints=0.5", "--checkpoints is for run folders"),
        ("--checkpoints=1", "--checkpoints is for run folders"),
    ):
        assert command.main([str(tmp_path / "x.csv"), flag]) != 0
        assert message in capsys.readouterr().err
    whole = "must be a whole number of 0 or more"
    for row, rule in (
        ("1.5,0", whole),
        ("1,2", "must be 0 or 1"),
        ("-1,0", whole),
        ("nan,0", whole),
    ):
        (tmp_path / "y.csv").write_text(f"{lines[0]}\n1e6,1e7,2.0,{row}\n")
        assert command.main([str(tmp_path / "y.csv")]) != 0
        assert rule in capsys.readouterr().err
    assert command.main([str(tmp_path), "--checkpoints=1"]) != 0
    assert "must be a share from 0 to below 1" in capsys.readouterr().err
