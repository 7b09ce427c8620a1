"""The board: what is ranked with what, and what stays blank.

The sentences of verdicts are compared in `test_protocol_statistics.py`; here their kinds are.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import board_runs as runs
import numpy as np
import pytest
from rich.console import Console
from scipy import stats

import leaderboard
from errors import ConfigError
from protocol.board import export, sentences
from protocol.board.board import make_board
from protocol.board.columns import format_cell
from protocol.board.verify import verify_board
from protocol.records import series
from protocol.records.comparability import COMPARABILITY_KEYS, key_label
from protocol.records.load import load_records

ROOT = Path(__file__).parents[2]


def boarded(*paths):
    return make_board(*load_records(paths))


def only(found):
    """Rows by name of the only group."""
    (family,) = found.comparable_sets
    (group,) = family.groups
    return {row.name: row for row in group.rows}, group, family


def test_means_intervals_and_ranks(tmp_path):
    values = {"a": [2.00, 2.01, 2.02], "b": [2.30, 2.31, 2.35], "c": [2.31, 2.30, 2.36]}
    for name, found in values.items():
        runs.candidate(tmp_path, name, found, model={"layers": [f"{name}+mlp"]})
    rows, group, family = only(boarded(tmp_path))
    for name, found in values.items():
        low, high = stats.t.interval(0.95, 2, np.mean(found), stats.sem(found))
        assert rows[name].interval == pytest.approx((low, high))
        assert rows[name].sample.mean == pytest.approx(np.mean(found))
    assert [row.name for row in group.rows][0] == "a"
    assert [rows[name].place_text for name in "abc"] == ["1", "2–3", "2–3"]  # covers E4
    head = sentences.summarize_group(group, family)
    assert head.verdict == (
        "Exploratory: a has the lowest bits per byte on test; b and c are shown to be worse."
    )
    kinds = {(v.a.name, v.b.name): v.kind for v in group.verdicts}
    assert kinds == {("a", "b"): "lower", ("a", "c"): "lower", ("b", "c"): "inconclusive"}
    assert "model.layers" in head.differences


def test_few_runs_have_no_rank(tmp_path):
    """covers E3"""
    runs.candidate(tmp_path, "one", [2.0])
    runs.candidate(tmp_path, "two", [2.1, 2.2], model={"depth": 6})
    rows, group, family = only(boarded(tmp_path))
    assert rows["one"].interval is None and rows["one"].rank is rows["two"].rank is None
    assert sentences.format_result(rows["one"]) == "2.0000"
    assert [v.kind for v in group.verdicts] == ["too_few_runs"]
    head = sentences.summarize_group(group, family)
    assert head.verdict == "Nothing is ranked here."
    assert any("n=1; a rank needs at least 3 runs" in text for text in head.confidence)


@pytest.mark.parametrize(
    "bad", [{"value": "NaN"}, {"state": "failed", "code": 70}, {"value": "Infinity"}]
)
def test_a_diverged_run_stays_in_n(tmp_path, bad):
    runs.candidate(tmp_path, "sound", [2.0, 2.01, 2.02])
    runs.candidate(tmp_path, "wild", [1.0, 1.01], model={"depth": 6})
    runs.run(tmp_path / "wild-2", "wild", 2, **({"value": 1.0} | bad), model={"depth": 6})
    rows, _, _ = only(boarded(tmp_path))
    assert (rows["wild"].sample.n_runs, rows["wild"].sample.n_diverged) == (3, 1)
    assert rows["wild"].sample.mean is None and rows["wild"].rank is None
    assert sentences.format_result(rows["wild"]) == "1 of 3 diverged"


def test_what_is_missing_stays_blank(tmp_path):
    """covers E5, E8"""
    runs.candidate(tmp_path, "a", [2.0, 2.01, 2.02])
    runs.run(tmp_path / "a-3", "a", 3, state="failed", code=74)
    (tmp_path / "a-3/status.json").write_text(
        json.dumps({"state": "failed", "code": 74, "step": 10, "message": "DiskError: disk full."})
    )
    (tmp_path / "a-2/eval/100/bits_per_byte.json").unlink()
    rows, _, _ = only(boarded(tmp_path))
    assert rows["a"].sample.values == (2.0, 2.01) and rows["a"].sample.n_diverged == 0
    assert "1 failed run (disk full)" in rows["a"].notes
    assert "1 run without a score of test/bits_per_byte" in rows["a"].notes
    assert "mfu" not in rows["a"].costs
    line = export.to_csv(boarded(tmp_path)).splitlines()
    assert dict(zip(line[0].split(","), line[1].split(","), strict=False))["mfu"] == ""


def test_a_stopped_run_is_unfinished_and_its_reason_is_one_sentence(tmp_path):
    runs.candidate(tmp_path, "a", [2.0, 2.01, 2.02])
    folder = runs.run(tmp_path / "b-0", "b", 0, state="preempted", code=75, model={"depth": 6})
    message = "PreemptedError: stopped by SIGINT at step 1. Run the same command to resume."
    (folder / "status.json").write_text(json.dumps({"state": "preempted", "message": message}))
    found = boarded(tmp_path)
    assert only(found)[0]["b"].notes == ("1 unfinished run (stopped by SIGINT at step 1)",)
    page = export.to_html(found)
    assert "<p>1 unfinished run (stopped by SIGINT at step 1).</p>" in page
    assert ">unfinished</span>" in page and ".." not in re.sub(r"(?s)<script.*?</script>", "", page)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.51, "2.5 s"), (16, "16 s"), (59.7, "1 min 0 s"), (250, "4 min 10 s"), (3900, "1 h 5 min")],
)
def test_a_time_has_its_units(seconds, text):
    assert format_cell("seconds", seconds) == text


def test_a_score_of_another_step_does_not_count(tmp_path):
    """covers E7"""
    runs.run(tmp_path / "a", "a", 0, 2.0)
    better = json.loads((tmp_path / "a/eval/100/bits_per_byte.json").read_text())
    for score in better["scores"]:
        score["value"] = 1.0
    runs.write(tmp_path / "a/eval/50/bits_per_byte.json", better | {"step": 50})
    rows, _, _ = only(boarded(tmp_path))
    assert rows["a"].sample.values == (2.0,)


OTHER = {  # what makes a run unlike another: (changes of run.json's settings, of the score's file)
    "objective": ({"causal_lm": {"z_loss": 0.1}}, {}),
    "seq_len": ({"train": {"seq_len": 128, "steps": 100, "batch_size": 4}}, {}),
    "batch_size": ({"train": {"seq_len": 64, "steps": 100, "batch_size": 8}}, {}),
    "precision": ({"model": {"dtype": "bfloat16"}}, {}),
    "optimizer": ({"optimizer": {"name": "muon"}}, {}),
    "evaluation": ({}, {"version": 2}),  # covers E6
}


@pytest.mark.parametrize("key", OTHER)
def test_unlike_rows_are_not_ranked_together(tmp_path, key):
    settings, score = OTHER[key]
    runs.candidate(tmp_path, "a", [2.0, 2.01, 2.02])
    runs.candidate(tmp_path, "b", [1.0, 1.01, 1.02])
    for seed in range(3):
        edit(tmp_path / f"b-{seed}/run.json", settings=settings)
        edit(tmp_path / f"b-{seed}/eval/100/bits_per_byte.json", **score)
    found = boarded(tmp_path)
    assert len(found.comparable_sets) == 2
    assert found.not_comparable == (f"set 2 differs from set 1 in {key_label(key)}",)
    assert all(row.rank is None for family in found.comparable_sets for row in family.rows)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("data", {"fingerprints": {"data": "e" * 64}}),
        ("tokenizer", {"fingerprints": {"tokenizer": "8" * 64}}),
        ("init_from", {"flags": {"init_from": "runs/other"}}),
        ("init_from", {"flags": {"init_from_sha256": "1" * 64}}),  # Of one path at another time.
        ("tuning_trials", {"study": {"tuning_trials": 9}}),
        ("metric", {"study": {"metric": "valid/bits_per_byte"}}),
        ("the matched axis", {"study": {"axis": "tokens"}}),
    ],
)
def test_runs_of_another_kind_are_not_ranked_together(tmp_path, key, changes):
    runs.candidate(tmp_path, "a", [2.0, 2.01, 2.02])
    runs.candidate(tmp_path, "b", [1.0, 1.01, 1.02])
    for seed in range(3):
        edit(tmp_path / f"b-{seed}/run.json", **changes)
    (text,) = boarded(tmp_path).not_comparable
    assert key_label(key) in text
    assert set(COMPARABILITY_KEYS) >= set(OTHER)


def edit(path, **changes):
    """Change sections of a JSON file, one level down."""
    tree = json.loads(path.read_text())
    for name, value in changes.items():
        if isinstance(value, dict) and name in tree:
            value = tree[name] | {
                k: tree[name].get(k, {}) | v if isinstance(v, dict) else v for k, v in value.items()
            }
        tree[name] = value
    path.write_text(json.dumps(tree))


def test_a_row_off_the_declared_axis_is_refused(tmp_path):
    """covers C17"""
    runs.candidate(tmp_path, "a", [2.0, 2.01, 2.02])
    runs.candidate(tmp_path, "b", [1.0, 1.01, 1.02], flops=1.02 * runs.FLOPS)
    rows, group, _ = only(boarded(tmp_path))
    assert rows["b"].rank is None and not group.verdicts
    assert "its training_flops is 1.57e11, 1.02 times the declared 1.54e11" in str(group.problems)


def test_without_a_declared_axis_equal_flops_make_a_group(tmp_path):
    """covers C17"""
    none = {"axis": None, "value": None, "plan": None}
    for name, flops in (("a", 1.0), ("b", 1.005), ("c", 1.02)):
        values = [2.0 + flops / 10, 2.01 + flops, 2.02]
        more = {"layers": [name]}
        runs.candidate(tmp_path, name, values, flops=flops * runs.FLOPS, study=none, model=more)
    (family,) = boarded(tmp_path).comparable_sets
    assert [[row.name for row in g.rows] for g in family.groups] == [["a", "b"], ["c"]]
    assert "exploratory" in sentences.group_title(family.groups[0])
    assert "Exploratory" in sentences.summarize_group(family.groups[0], family).confidence[0]


def test_a_run_counts_once(tmp_path):
    """covers K20: a copy of a folder, and a seed that was run twice, are no more evidence."""
    runs.candidate(tmp_path, "a", [2.0, 2.1, 2.2])
    runs.run(tmp_path / "copy", "a", 0, 2.0)
    runs.run(tmp_path / "again", "a", 1, 1.0, flags={}, rerun=True)
    edit(tmp_path / "again/run.json", run_id="another")
    found = boarded(tmp_path)
    rows, _, _ = only(found)
    assert rows["a"].sample.n_runs == 3
    assert "1 run repeats a seed and is not counted" in rows["a"].notes
    assert [u.folder for u in found.unreadable] == [f"{tmp_path.name}/copy"]
    edit(tmp_path / "a-1/status.json", state="failed", code=70)
    rows, _, _ = only(boarded(tmp_path))
    assert rows["a"].sample.n_diverged == 1  # running a diverged seed again does not mend it


def test_declared_values_that_agree_are_one_group(tmp_path):
    for name, factor in (("a", 1.0), ("b", 1.004), ("c", 1.02)):
        study = {"value": factor * runs.STUDY["value"]}
        more = {"flops": factor * runs.FLOPS, "model": {"layers": [name]}, "study": study}
        runs.candidate(tmp_path, name, [2.0, 2.01, 2.02], **more)
    (family,) = boarded(tmp_path).comparable_sets
    assert [[row.name for row in g.rows] for g in family.groups] == [["a", "b"], ["c"]]


def test_declared_comparisons_are_those_that_count(tmp_path):
    study = {"comparisons": [["b", "a"], ["a", "c"], ["c", "a"], ["a", "absent"]]}
    for i, name in enumerate("abcd"):
        values = [2.0 + i, 2.01 + i, 2.02 + i]
        runs.candidate(tmp_path, name, values, model={"layers": [name]}, study=study)
    rows, group, family = only(boarded(tmp_path))
    assert [(v.a.name, v.b.name) for v in group.verdicts] == [("b", "a"), ("c", "a")]
    short = sentences.summarize_group(group, family).verdict
    assert short.endswith("b and c are shown to be worse than a; d is not ranked.")
    near, far = (
        stats.ttest_ind([2.0, 2.01, 2.02], [2.0 + i, 2.01 + i, 2.02 + i]).pvalue for i in (1, 2)
    )
    assert [v.p for v in group.verdicts] == pytest.approx([near, 2 * far], rel=1e-4)  # Holm of 2
    assert [rows[name].rank for name in "abcd"] == [None] * 4  # Two pairs decide no order.
    assert [rows[name].place_text for name in "abcd"] == ["reference", "below", "below", ""]
    assert group.problems == (
        "2 of 6 pairs were declared and can be compared; ranks need all pairs",
    )


def test_what_cannot_be_told_apart_is_told(tmp_path):
    study = {"comparisons": [["b", "a"], ["c", "d"]]}
    for name, mean in zip("abcd", (2.0, 3.0, 2.50, 2.51), strict=True):
        values = [mean, mean + 0.02, mean + 0.04]
        runs.candidate(tmp_path, name, values, model={"layers": [name]}, study=study)
    _, group, family = only(boarded(tmp_path))
    kinds = {(v.a.name, v.b.name): v.kind for v in group.verdicts}
    assert kinds == {("b", "a"): "higher", ("c", "d"): "inconclusive"}
    told = [verdict.sentence.replace("+-", "±") for verdict in group.verdicts]
    lines = sentences.summarize_group(group, family).comparisons
    assert [text in line for text, line in zip(told, lines, strict=True)] == [True, True]


def test_comparisons_elsewhere_in_the_plan_count(tmp_path):
    study = {"comparisons": [["b", "a"]], "n_comparisons": 5}
    for i, name in enumerate("ab"):
        values = [2.0 + i / 50, 2.01 + i / 50, 2.02 + i / 50]
        runs.candidate(tmp_path, name, values, model={"layers": [name]}, study=study)
    rows, group, _ = only(boarded(tmp_path))
    alone = stats.ttest_ind([2.0, 2.01, 2.02], [2.02, 2.03, 2.04]).pvalue
    assert group.verdicts[0].p == pytest.approx(5 * alone)
    assert group.verdicts[0].kind == "inconclusive"


def test_costs_of_other_objectives_are_blank_unless_recorded(tmp_path):
    runs.run(tmp_path / "a", "a", 0, 2.0)
    edit(tmp_path / "a/run.json", settings={"objective": "denoising"}, study={"axis": None})
    (row,) = boarded(tmp_path).comparable_sets[0].rows
    assert "training_flops" not in row.costs
    edit(tmp_path / "a/run.json", cost={"run_tokens": 1000})
    (row,) = boarded(tmp_path).comparable_sets[0].rows
    assert row.costs["training_flops"] == 1000 * runs.FLOPS


def test_inference_is_shown_at_the_longest_context(tmp_path):
    scores = [("decode_ms_per_token@256", 1.0), ("decode_ms_per_token@1024", 3.0)]
    scores += [("prefill_tokens_per_second@64", 100.0), ("state_bytes@1024", 5000)]
    runs.run(tmp_path / "a", "a", 0, 2.0, scores=scores)
    rows, _, _ = only(boarded(tmp_path))
    found = rows["a"].costs
    assert found["decode_ms_per_token"] == 3.0 and found["prefill_tokens_per_second"] == 100.0
    assert found["measured_state_bytes"] == 5000 and found["state_bytes"] == 327_680


def test_tuning_runs_are_not_shown(tmp_path):
    runs.candidate(tmp_path, "a", [2.0, 2.1, 2.2])
    runs.run(tmp_path / "t", "a", 7, 1.0, study={"role": "tuning"})
    found = boarded(tmp_path)
    rows, _, _ = only(found)
    assert found.tuning_runs == 1 and rows["a"].sample.n_runs == 3


def test_data_is_the_same_up_to_a_step(tmp_path):
    for seed in range(3):
        runs.run(tmp_path / f"a-{seed}", "a", seed, 2.0 + seed / 100)
        runs.run(tmp_path / f"b-{seed}", "b", seed, 2.5 + seed / 100, model={"depth": 6})
        runs.run(tmp_path / f"c-{seed}", "c", seed, 2.7, data="other", model={"depth": 7})
    metrics = tmp_path / "b-1/metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    rest = (tmp_path / "c-1/metrics.jsonl").read_text().splitlines()
    hashes = [json.loads(line)["data_hash"] for line in rest]
    for line, other in list(zip(lines, hashes, strict=True))[6:]:
        line["data_hash"] = other
    metrics.write_text("\n".join(map(json.dumps, lines)) + "\n")
    rows, _, _ = only(boarded(tmp_path))
    found = [rows[name].data_agreement for name in "abc"]
    assert found == ["reference", "60 of 100 steps", "0 of 100 steps"]
    lines[2]["data_hash"] = "f" * 64  # differs inside a common prefix
    metrics.write_text("\n".join(map(json.dumps, lines)) + "\n")
    rows, _, _ = only(boarded(tmp_path))
    assert rows["b"].data_agreement == "broken: hashes differ, then agree"


def test_the_front_is_what_nothing_beats_at_both(tmp_path):
    rng = np.random.default_rng(0)
    points = {f"r{i}": (rng.random() + 1, int(rng.integers(1, 9)) * 1000) for i in range(20)}
    for name, (value, state) in points.items():
        runs.candidate(tmp_path, name, [value], state_bytes=state, model={"layers": [name]})
    rows, _, _ = only(boarded(tmp_path))
    for name, (value, state) in points.items():
        beaten = any(
            v <= value and s <= state and (v, s) != (value, state) for v, s in points.values()
        )
        assert ("state" in rows[name].pareto) == (not beaten), name


def test_a_heavy_head_is_part_of_the_conclusion(tmp_path):
    runs.candidate(tmp_path, "a", [2.0, 2.1, 2.2])
    runs.candidate(tmp_path, "b", [2.0, 2.1, 2.2], model={"depth": 6}, params=2_500_000)
    for seed in range(3):
        edit(
            tmp_path / f"a-{seed}/run.json",
            cost={"terms": {"head.logits": {"model": 0.3 * runs.FLOPS / 3}}},
        )
    _, group, family = only(boarded(tmp_path))
    cost = " ".join(sentences.summarize_group(group, family).costs)
    assert "The output head takes 30 % of the FLOPs of a" in cost
    edit(
        tmp_path / "b-0/run.json", cost={"terms": {"head.logits": {"model": 1.3 * runs.FLOPS / 3}}}
    )
    _, group, family = only(boarded(tmp_path))
    heavy = " ".join(sentences.summarize_group(group, family).costs)
    assert "The output head takes 30 % to 50 % of the FLOPs of a and b; at larger sizes" in heavy
    assert "b relative to a: 2.50 x params" in cost and "All have equal training FLOPs." in cost


def test_versions_of_a_score_are_not_pooled(tmp_path):
    """covers E6"""
    runs.candidate(tmp_path, "a", [2.0, 2.1, 2.2])
    for seed, version in enumerate((1, 1, 2)):
        scores = [{"name": "probe/era", "value": 0.5}, {"name": "probe/genre", "value": 0.4}]
        kept = scores if seed < 2 else scores[:1]
        task = {"task": "probes", "version": version, "step": 100, "scores": kept}
        runs.write(tmp_path / f"a-{seed}/eval/100/probes.json", task)
    rows, _, _ = only(boarded(tmp_path))
    assert "probe/era" not in rows["a"].scores and rows["a"].scores["probe/genre"] == 0.4
    assert "probe/era was evaluated by several versions" in rows["a"].notes


def test_copies_of_a_candidate_are_never_ranked(tmp_path):
    runs.candidate(tmp_path, "a", [2.0, 2.01, 2.02])
    runs.candidate(tmp_path, "renamed", [3.0, 3.01, 3.02])
    rows, group, _ = only(boarded(tmp_path))
    assert [v.kind for v in group.verdicts] == ["duplicate"]
    assert {row.place_text for row in rows.values()} == {""}
    assert rows["renamed"].problems == ("it is a copy of a, and no candidate",)


def test_names_tell_rows_apart(tmp_path):
    for i, rate in enumerate((0.001, 0.002)):
        study = {"candidate": "dense"}
        more = {"optimizer": {"learning_rate": rate}, "study": study}
        runs.candidate(tmp_path / str(i), "dense", [2.0, 2.1, 2.2], **more)
    rows, _, _ = only(boarded(tmp_path))
    assert set(rows) == {"dense learning_rate=0.001", "dense learning_rate=0.002"}


def test_refutations_are_rows(tmp_path):
    runs.candidate(tmp_path, "a", [2.0, 2.01, 2.02])
    claim = {"refutes": "b beats a"}
    runs.candidate(tmp_path, "b", [2.3, 2.31, 2.32], model={"depth": 6}, study=claim)
    rows, _, _ = only(boarded(tmp_path))
    assert rows["b"].rank == 2 and "refutes: b beats a" in rows["b"].notes
    assert 'title="b beats a">refutation<' in export.to_html(boarded(tmp_path))


def test_the_same_folders_give_the_same_bytes(tmp_path):
    for place in ("here/runs", "there/runs"):
        runs.candidate(tmp_path / place, "a", [2.0, 2.01, 2.02])
        runs.candidate(tmp_path / place, "b", [2.3, 2.31, "NaN"], model={"depth": 6})
    one = export.write_board(boarded(tmp_path / "here/runs"), tmp_path / "one")
    again = sorted((tmp_path / "there/runs").iterdir(), reverse=True)
    two = export.write_board(make_board(*load_records([tmp_path / "there/runs"])), tmp_path / "two")
    assert [p.name for p in one] == [f"leaderboard.{x}" for x in ("md", "csv", "json", "html")]
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes()
    records, _ = load_records(again)
    assert make_board(records[::-1]) == make_board(records)


def test_json_has_the_keys_of_lm_eval(tmp_path):
    runs.candidate(tmp_path, "a", [2.0, 2.1, 2.2], scores=[("probe/era", 0.25)])
    tree = json.loads(json.dumps(export.to_json_tree(boarded(tmp_path))))
    (row,) = tree["comparable_sets"][0]["groups"][0]["rows"]
    assert row["results"]["test"]["bits_per_byte,none"] == pytest.approx(2.1)
    assert row["results"]["probe"] == {"alias": "probe", "era,none": 0.25}
    assert row["versions"]["test"] == 1
    assert row["higher_is_better"] == {"test": {"bits_per_byte": False}}
    assert row["config"]["model"] == "a" and row["git_hash"] == "c" * 40


def test_a_published_board_is_verified(tmp_path):
    """covers S9"""
    runs.candidate(tmp_path / "runs", "a", [2.0, 2.1, 2.2])
    export.write_board(boarded(tmp_path / "runs"), tmp_path)
    published = tmp_path / "leaderboard.json"
    assert verify_board(published, boarded(tmp_path / "runs")) == []
    score = tmp_path / "runs/a-1/eval/100/bits_per_byte.json"
    score.write_text(score.read_text().replace("2.1", "2.0"))
    lines = verify_board(published, boarded(tmp_path / "runs"))
    assert lines[0] == "runs/a-1: its files are not those that were published"
    score.write_text(score.read_text().replace("2.0", "2.1"))
    published.write_text(published.read_text().replace('"value": 2.2', '"value": 1.2'))
    lines = verify_board(published, boarded(tmp_path / "runs"))
    assert lines == [
        "runs/a-2: 1.2 was published, its files have 2.2",
        "comparable_sets[0].groups[0].rows[0].runs[2].value: 1.2 was published, the run folders "
        "give 2.2",
    ]


FORGED = {  # place in a group: what is put there
    "rows[0].rank": 2,
    "rows[1].mean": 0.5,
    "rows[1].problems": ["x"],
    "comparisons[0].sentence": "b wins",
    "comparisons[0].p": 0.0,
    "summary.verdict": "b is far better.",
    "axis_declared": 1,
}


@pytest.mark.parametrize("place", FORGED)
def test_a_forged_board_is_told_by_its_places(tmp_path, place):
    """covers S9"""
    runs.candidate(tmp_path / "runs", "a", [2.0, 2.1, 2.2])
    runs.candidate(tmp_path / "runs", "b", [2.5, 2.6, 2.7], model={"depth": 6})
    export.write_board(boarded(tmp_path / "runs"), tmp_path)
    published = tmp_path / "leaderboard.json"
    tree = json.loads(published.read_text())
    at, (*way, last) = tree["comparable_sets"][0]["groups"][0], re.findall(r"\w+", place)
    for key in way:
        at = at[int(key) if key.isdigit() else key]
    at[last] = FORGED[place]
    published.write_text(json.dumps(tree))
    (line,) = verify_board(published, boarded(tmp_path / "runs"))
    assert line.startswith(f"comparable_sets[0].groups[0].{place}: ")


def test_many_candidates_are_not_ranked(tmp_path):
    for i in range(41):
        runs.candidate(tmp_path, f"c{i}", [2.0 + i, 2.1 + i, 2.2 + i], model={"depth": i}, rows=1)
    _, group, _ = only(boarded(tmp_path))
    assert not group.verdicts and "820 comparisons" in group.problems[0]


def test_the_command(tmp_path, capsys):
    runs.candidate(tmp_path / "runs", "a", [2.0, 2.1, 2.2])
    assert leaderboard.main([str(tmp_path / "runs"), f"--out={tmp_path / 'board'}"]) == 0
    assert "3 runs of 1 candidate in 1 group" in capsys.readouterr().out
    assert (tmp_path / "board/leaderboard.html").is_file()
    assert leaderboard.main([str(tmp_path / "nothing")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "does not exist" in said


@pytest.mark.slow
def test_the_command_needs_no_jax(tmp_path):
    """`test_style.py` reads the imports of the project; this runs those of its libraries too."""
    runs.candidate(tmp_path / "runs", "a", [2.0, 2.1, 2.2])
    code = "import sys, leaderboard; leaderboard.main(sys.argv[1:]); sys.exit('jax' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "runs")]
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 0


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="has no run folder in it"):
        load_records([tmp_path])


def test_the_series_is_the_one_that_training_reads(tmp_path):
    from training.run.folder import read_metrics

    rows = [(1, 1, 5.0), (2, 1, 4.0), (3, 1, 9.0), (2, 2, 3.0), (2, 2, 2.5), (4, 2, 1.0)]
    lines = [json.dumps({"step": s, "attempt": a, "loss": x}) for s, a, x in rows]
    lines.insert(3, json.dumps({"step": 1, "attempt": 2, "resumed": True}))
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(lines) + '\n{"step": 5, "lo')
    found = [row.tree for row in series.increasing_steps(path.read_bytes())]
    assert found == read_metrics(path) and [row["loss"] for row in found] == [5.0, 2.5, 1.0]


def test_what_training_records_is_what_the_board_reads(tmp_path):
    from settings.tree import as_json
    from training import accounting
    from training.run import provenance
    from training.settings import Settings, resolve

    settings = resolve(Settings(), 365)
    record = provenance.make_run_record(
        settings=as_json(settings),
        fingerprints={"data": runs.DATA, "tokenizer": runs.TOKENIZER},
        cost=accounting.cost_record(accounting.model_cost(settings), settings),
        mesh={"data": 1},
        flags={"config": "configs/dense.py:tiny", "init_from": ""},
        command=["train.py"],
    )
    runs.run(tmp_path / "a", "dense", 0, 2.0)
    runs.write(tmp_path / "a/run.json", record)
    (row,) = boarded(tmp_path).comparable_sets[0].rows
    keys = row.first_run.keys
    assert keys["seq_len"] == "256 tokens" and keys["batch_size"] == "16 sequences"
    assert keys["precision"] == "float32" and keys["optimizer"] == "adamw"
    assert row.name == "dense:tiny" and row.first_run.architecture.startswith(
        "attention+mlp, depth"
    )
    wanted = {"params", "active_params", "training_flops", "executed_flops", "head_share"}
    assert row.costs.keys() >= wanted | {"state_bytes", "tokens"}
    assert row.costs["training_flops"] == 4_096_000 * record["cost"]["training_flops"]


def test_terminal_and_markdown_hold_every_row(tmp_path):
    for name, value in zip("ab", (2.0, 2.5), strict=True):
        values = [value, value + 0.01, value + 0.02]
        runs.candidate(tmp_path, name * 3, values, model={"layers": [name]})
    found = boarded(tmp_path)
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=200)
        export.print_board(found, console)
    text = console.export_text()
    for shown, name in itertools.product((text, export.to_markdown(found)), ("aaa", "bbb")):
        assert name in shown and "2.0100" in shown


def test_contexts_that_are_framed_differently_are_not_ranked_together(tmp_path):
    frame = {"document_prefix": "'<s>' (1)", "text_prefix": "'<s>' (1)"}
    runs.candidate(tmp_path, "old", [2.0, 2.01, 2.02])  # run.json of an earlier version
    runs.candidate(tmp_path, "same", [2.1, 2.11, 2.12], framing=frame)
    runs.candidate(tmp_path, "bare", [1.0, 1.01, 1.02], framing=frame | {"text_prefix": "nothing"})
    found = make_board(*load_records([tmp_path]))
    names = {s.keys["tokenizer"][-30:]: {row.name for row in s.rows} for s in found.comparable_sets}
    assert sorted(map(sorted, names.values())) == [["bare"], ["old", "same"]]
    assert any(key.endswith("(before a context: nothing)") for key in names)


def test_a_lossy_tokenizer_is_named_and_not_ranked_beside_a_lossless_one(tmp_path):
    whole = {"train": 1.0, "valid": 1.0, "test": 1.0}
    runs.candidate(tmp_path, "whole", [2.0, 2.01, 2.02], decodes_back=whole)
    runs.candidate(tmp_path, "lower", [1.0, 1.01, 1.02], decodes_back=whole | {"test": 0.83219})
    found = make_board(*load_records([tmp_path]))
    assert len(found.comparable_sets) == 2
    lossy = next(s for s in found.comparable_sets if "(lossy)" in s.keys["tokenizer"])
    assert [row.name for row in lossy.rows] == ["lower"]
    text = export.to_markdown(found)
    assert text.count("The tokenizer is lossy: 83.2 % of the bytes of the text decode back") == 1
