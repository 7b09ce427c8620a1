"""The board is sound despite excluded rows, missing data and undeclared comparisons."""

import csv
import json
import re
import shutil
from pathlib import Path

import board_runs as runs
import numpy as np
import pytest
from scipy import stats
from test_board import boarded, edit, only

from protocol.board import export, sentences
from protocol.records.metrics import DIRECTION, metric_direction
from protocol.records.study_record import StudyRecord

A, B, C = [2.00, 2.01, 2.005], [2.10, 2.11, 2.105], [2.30, 2.31, 2.305]


def put(root, **candidates):
    """Candidates by name, each its values and, after them, its changes."""
    for width, (name, (values, changes)) in enumerate(candidates.items()):
        runs.candidate(root, name, values, **{"model": {"width": 64 + width}} | changes)


def declares(*pairs, **more):
    return {"study": {"comparisons": [list(pair) for pair in pairs], **more}}


def reported(root, family, **result):
    """A file of one result with the keys of a family."""
    keys = {k: v for k, v in family.keys.items() if k != "metric"}
    one = {"name": "x", "metric": family.metric_name, "values": [9.0], "keys": keys} | result
    runs.write(root / "theirs.json", {"format": 2, "source": "nowhere", "results": [one]})
    return root / "theirs.json"


def test_a_row_without_a_say_loosens_no_margin(tmp_path):
    """Means 2.005 and 2.105 are .1 apart: nobody who declared the pair calls that equivalent."""
    study = declares(("b", "a"), margin=0.02)
    put(tmp_path / "runs", a=(A, study), b=(B, study))
    _, group, family = only(boarded(tmp_path / "runs"))
    assert [(v.kind, v.metric.margin) for v in group.verdicts] == [("higher", 0.02)]
    study = {"axis": "training_flops", "value": runs.STUDY["value"], "margin": 0.5}
    theirs = reported(tmp_path, family, study=study | {"comparisons": [["b", "a"]]})
    _, group, _ = only(boarded(tmp_path / "runs", theirs))
    assert [(v.kind, v.metric.margin) for v in group.verdicts] == [("higher", 0.02)]
    put(tmp_path / "runs", **{"far": (C, declares(("b", "a"), margin=0.5) | {"flops": 5e6})})
    _, group, _ = only(boarded(tmp_path / "runs", theirs))  # a folder off the axis is excluded too
    assert [(v.kind, v.metric.margin) for v in group.verdicts] == [("higher", 0.02)]


def test_the_smallest_margin_of_those_who_declare_a_pair(tmp_path):
    for width, (name, values) in enumerate((("a", A), ("b", B)), 64):
        for seed, (value, plan, margin) in enumerate(
            zip(values, ("1", "2", "2"), (0.5, 0.2, 0.2), strict=True)
        ):
            study = declares(("b", "a"), plan=plan, margin=margin)["study"]
            runs.run(
                tmp_path / f"{name}{seed}", name, seed, value, model={"width": width}, study=study
            )
    (verdict,) = only(boarded(tmp_path))[1].verdicts
    assert verdict.metric.margin == 0.2 and verdict.kind == "equivalent"


def test_what_nobody_declared_is_exploratory_and_has_no_margin(tmp_path):
    put(tmp_path, a=(A, {"study": {"margin": 0.5}}), b=(B, {"study": {"margin": 0.5}}))
    _, group, family = only(boarded(tmp_path))
    (verdict,) = group.verdicts
    assert verdict.kind == "lower" and verdict.metric.margin == 0 and not verdict.is_declared
    assert verdict.sentence.startswith("exploratory: ")
    assert "(exploratory)" in sentences.group_title(group)
    header, *lines = csv.reader(export.to_csv(boarded(tmp_path)).splitlines())
    assert [line[header.index("exploratory")] for line in lines] == ["true", "true"]
    assert sentences.summarize_group(group, family).verdict.startswith(
        "Exploratory: a has the lowest"
    )


def test_no_undeclared_comparison_stands_in_for_a_declared_one(tmp_path):
    """The reference of both comparisons diverged: a and b were never to be compared."""
    study = declares(("ref", "a"), ("ref", "b"), n_comparisons=2)
    put(tmp_path, ref=([2.2, 2.21, "NaN"], study), a=(A, study), b=(C, study))
    rows, group, _ = only(boarded(tmp_path))
    assert {v.kind for v in group.verdicts} == {"diverged"} and len(group.verdicts) == 2
    assert all(row.rank is None for row in rows.values())
    assert "no declared comparison is between rows that can be ranked" in group.problems[0]


def test_rows_of_one_candidate_are_compared_as_what_they_are(tmp_path):
    """Two sizes of a and of b: four pairs, but nobody declared which of them; never a with a."""
    study = declares(("a", "b"))
    for width, shift in ((64, 0.0), (96, 0.5)):
        for name, values in (("a", A), ("b", B)):
            more = study | {"model": {"width": width, "layers": [name]}}
            runs.candidate(tmp_path / f"{width}", name, [x + shift for x in values], **more)
    _, group, _ = only(boarded(tmp_path))
    pairs = {(v.a.name[0], v.b.name[0]) for v in group.verdicts}
    assert len(group.verdicts) == 4 and pairs == {("a", "b")}
    assert not any(v.is_declared for v in group.verdicts) and group.is_exploratory
    assert "no plan declares which of them are compared" in group.problems[0]


def test_rows_of_another_plan_do_not_blur_what_was_declared(tmp_path):
    """Another plan's b, and forty more: a and b of this one are what they were, p included."""
    study = declares(("b", "a"), margin=0.02)
    put(tmp_path, a=(A, study), b=(B, study))
    before = only(boarded(tmp_path))[1].verdicts
    for i in range(41):
        more = {"model": {"layers": [f"{i}"]}} | declares(("b", "z"), plan="another")
        more["study"]["candidate"] = "b"
        runs.candidate(tmp_path / "more", f"b{i}", [3 + i, 3.1 + i, 3.2 + i], rows=1, **more)
    _, group, _ = only(boarded(tmp_path))
    (verdict,) = group.verdicts
    assert verdict.a.name.startswith("b") and verdict.is_declared and verdict.p == before[0].p


def test_studies_keep_what_each_of_them_declared(tmp_path):
    one, two = declares(("b", "a"), plan="1"), declares(("d", "c"), plan="2", n_comparisons=3)
    more = {"c": ([x + 1 for x in A], two), "d": ([x + 1 for x in B], two)}
    put(tmp_path, a=(A, one), b=(B, one), **more)
    _, group, _ = only(boarded(tmp_path))
    assert {(v.a.name, v.b.name) for v in group.verdicts} == {("b", "a"), ("d", "c")}
    p = stats.ttest_ind(A, B).pvalue  # of equal spreads, so that Welch is Student; times 3 declared
    assert [v.p for v in group.verdicts] == pytest.approx([3 * p, 3 * p], rel=1e-4)
    assert all(v.is_declared for v in group.verdicts) and not group.is_exploratory


def test_a_row_without_a_say_splits_no_group(tmp_path):
    none = {"study": {"axis": "", "value": None, "plan": None}}
    put(tmp_path / "runs", a=(A, none), b=(B, none | {"flops": 6.05e6}))
    _, group, family = only(boarded(tmp_path / "runs"))
    assert {row.name for row in group.rows} == {"a", "b"}
    theirs = reported(tmp_path, family, costs={"training_flops": 5.99e6 * 25_600})
    rows, group, _ = only(boarded(tmp_path / "runs", theirs))
    assert [rows[name].rank for name in ("a", "b", "x")] == [1, 2, None]
    assert group.value == 6e6 * 25_600
    far = reported(tmp_path, family, costs={"training_flops": 5.9e6 * 25_600})
    (family,) = boarded(tmp_path / "runs", far).comparable_sets
    assert [[row.name for row in g.rows] for g in family.groups] == [["x"], ["a", "b"]]
    put(tmp_path / "runs", few=([2.0], none | {"flops": 5.99e6}))
    (family,) = boarded(tmp_path / "runs").comparable_sets
    assert [[row.name for row in g.rows] for g in family.groups] == [["a", "b", "few"]]


UNKNOWN = {
    "nothing declared": ({"axis": "", "value": None}, True, "no axis was declared, and its"),
    "no column": ({}, True, "its training_flops is unknown and cannot"),
    "no value": ({"value": None}, False, "the axis training_flops without its value"),
    "no such axis": ({"axis": "flopz"}, False, "the axis flopz, which does not exist"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_cost_is_no_equal_cost(tmp_path, case):
    study, costless, why = UNKNOWN[case]
    put(tmp_path, a=(A, {"study": study}), b=(B, {"study": study, "flops": 6e7}))
    for path in tmp_path.glob("*/run.json") if costless else ():
        tree = json.loads(path.read_text())
        runs.write(path, {k: v for k, v in tree.items() if k != "cost"})
    (family,) = boarded(tmp_path).comparable_sets
    for group in family.groups:
        assert not group.verdicts and all(row.rank is None for row in group.rows)
        assert all(why in row.exclusions[0] for row in group.rows)
        head = sentences.summarize_group(group, family)
        assert head.verdict == "Nothing is ranked here."
        assert not any(
            "agree" in text or "All have equal" in text for text in head.confidence + head.costs
        )


def test_a_candidate_that_always_diverged_is_last_with_its_verdict(tmp_path):
    """Its runs were never judged, so they have no evaluation of their own."""
    study = declares(("a", "b"), n_comparisons=1)
    put(tmp_path, a=(A, study))
    for seed in range(3):
        more = study | {"model": {"width": 66}}
        folder = runs.run(tmp_path / f"b-{seed}", "b", seed, "NaN", state="failed", code=70, **more)
        shutil.rmtree(folder / "eval")
    found = boarded(tmp_path)
    rows, group, _ = only(found)
    assert [row.name for row in group.rows] == ["a", "b"]
    assert (rows["b"].sample.n_runs, rows["b"].sample.n_diverged) == (3, 3)
    assert [verdict.kind for verdict in group.verdicts] == ["diverged"]
    interval = rows["b"].sample.divergence_interval
    assert interval == pytest.approx((0.025 ** (1 / 3), 1))


def test_an_unscored_run_joins_no_evaluation_of_two(tmp_path):
    put(tmp_path, a=(A, {}), b=(B, {}))
    for seed in range(3):
        edit(tmp_path / f"b-{seed}/eval/100/bits_per_byte.json", version=2)
    folder = runs.run(tmp_path / "c", "c", 0, "NaN", state="failed", code=70, model={"depth": 9})
    shutil.rmtree(folder / "eval")
    found = boarded(tmp_path).comparable_sets
    assert len(found) == 3 and "none" in {family.keys["evaluation"] for family in found}


def test_every_name_that_is_ranked_has_a_direction(tmp_path):
    """Of what eval/ yields, by hand: more of these is better, and less of those."""
    more = "accuracy masked_accuracy denoised_span_match recall@1 mrr spearman accuracy@64"
    less = "bits_per_byte nats_per_token masked_nats denoised_nats answer_nats@128 bits_per_byte@2x"
    neither = "majority_accuracy recall@1_low alignment uniformity layer chance@32 learning_rate"
    for names, way in ((more, "higher"), (less, "lower"), (neither, None)):
        assert {metric_direction(f"test/{name}", StudyRecord()) for name in names.split()} == {way}
    assert metric_direction("prefill_tokens_per_second@256", StudyRecord()) == "higher"
    assert metric_direction("decode_ms_per_token@256", StudyRecord()) == "lower"
    assert set(DIRECTION.values()) == {"lower", "higher"}


def test_a_new_score_needs_a_direction_or_has_none():
    """Every name that stands in eval/ is in DIRECTION, or here among those that rank nothing."""
    neither = "majority_accuracy bag_of_words_accuracy bag_of_words_nats uninformative layer"
    neither += " recall@1_low recall@1_high spearman_low spearman_high alignment uniformity chance"
    neither += " untrained_spearman bag_of_words_spearman learning_rate sample"
    neither += " eval_set_sha256 mask_sha256 recipe_sha256 tokens_per_byte train_examples flops"
    neither += " seconds preference_accuracy_low preference_accuracy_high"
    neither += " _low _high _reverse"  # ends of names that begin with a variable
    found = set()
    for path in (Path(__file__).parents[2] / "eval").rglob("*.py"):
        for name in re.findall(r'_?[Ss]core\(\s*f?"([^"]*)"', path.read_text("utf-8")):
            plain = re.sub(r"@\{\w+\}x?$", "", name)
            found.add(re.split(r"[}/]", plain)[-1].removesuffix("@1"))
    assert {"bits_per_byte", "spearman", "recall", "decode_ms_per_token"} <= found - {""}
    assert found - {""} <= DIRECTION.keys() | set(neither.split())
    assert not DIRECTION.keys() & set(neither.split())


@pytest.mark.parametrize(
    ("metric", "study", "ranks", "why"),
    [
        ("test/denoised_span_match", {}, {"good": 1, "bad": 2}, ""),
        ("test/own", {"better": "higher"}, {"good": 1, "bad": 2}, ""),
        ("test/own", {"better": "lower"}, {"good": 2, "bad": 1}, ""),
        ("test/own", {}, {}, "not known whether lower or higher test/own is better"),
        (
            "test/denoised_span_match",
            {"better": "lower"},
            {},
            "that lower test/denoised_span_match is better, but higher is",
        ),
    ],
)
def test_which_way_is_better_is_declared_or_known(tmp_path, metric, study, ranks, why):
    for depth, (name, first) in enumerate((("good", 0.8), ("bad", 0.1)), 5):
        for seed in range(3):
            scores, more = [(metric, first + seed / 100)], {"model": {"depth": depth}}
            folder, declared = tmp_path / f"{name}-{seed}", study | {"metric": metric}
            runs.run(folder, name, seed, 2.0, scores=scores, study=declared, **more)
    found = boarded(tmp_path)
    rows, group, _ = only(found)
    assert {name: row.rank for name, row in rows.items() if row.rank} == ranks
    assert found.not_comparable == ()
    assert why in str(group.problems) and bool(group.verdicts) == bool(ranks)
    assert bool(ranks) == any(row.pareto for row in rows.values())


def test_who_disagrees_on_the_better_end_is_apart(tmp_path):
    for name, way in (("a", "higher"), ("b", "lower")):
        for seed in range(3):
            study = {"metric": "test/own", "better": way}
            folder, model = tmp_path / f"{name}-{seed}", {"layers": [name]}
            runs.run(folder, name, seed, scores=[("test/own", 1.0)], study=study, model=model)
    assert boarded(tmp_path).not_comparable == ("set 2 differs from set 1 in the better direction",)


def test_declared_seeds_that_lack_a_result_are_waited_for(tmp_path):
    study = declares(("b", "a"), seeds=[0, 1, 2, 3, 4])
    put(tmp_path, a=(B, study), b=(A, study))
    for seed in (3, 4):
        runs.run(tmp_path / f"a-{seed}", "a", seed, 2.1, model={"width": 64}, **study)
    more = {"model": {"width": 65}, **study}
    shutil.rmtree(runs.run(tmp_path / "b-3", "b", 3, 9.0, state="failed", code=71, **more) / "eval")
    rows, group, _ = only(boarded(tmp_path))
    assert rows["b"].too_few_runs == "3 of 5 declared seeds have ended" and rows["b"].rank is None
    (verdict,) = group.verdicts
    assert verdict.kind == "too_few_runs" and verdict.winner() is None
    assert {verdict.a.required_runs, verdict.b.required_runs} == {5}
    runs.run(tmp_path / "b-3", "b", 3, 2.0, **more)
    runs.run(tmp_path / "b-4", "b", 4, 2.0, **more)
    rows, _, _ = only(boarded(tmp_path))
    assert (rows["a"].rank, rows["b"].rank) == (2, 1)


def test_runs_that_failed_are_told_beside_the_rank(tmp_path):
    """No seeds were declared, so that nobody knows whether they belong to it."""
    put(tmp_path, a=(B, {}), b=(A, {}))
    for seed in (3, 4):
        runs.run(tmp_path / f"b-{seed}", "b", seed, 9.0, state="failed", model={"width": 65})
    rows, group, family = only(boarded(tmp_path))
    assert rows["b"].rank == 1 and rows["b"].sample.n_runs == 3
    assert (
        "b: 2 unfinished or failed runs are excluded."
        in sentences.summarize_group(group, family).confidence
    )


def test_a_diverged_seed_is_neither_missing_nor_unfinished(tmp_path):
    study = {"study": {"seeds": [0, 1, 2]}}
    put(tmp_path, a=([2.0, 2.1, "NaN"], study))
    rows, _, _ = only(boarded(tmp_path))
    assert rows["a"].too_few_runs == "1 of 3 runs diverged, so it has a rate instead of a mean"


def test_runs_that_do_not_differ_have_no_interval(tmp_path):
    study = declares(("a", "b"))
    put(tmp_path, a=([2.0] * 3, study), b=([2.5] * 3, study))
    _, group, family = only(boarded(tmp_path))
    (verdict,) = group.verdicts
    assert verdict.kind == "no_variance" and verdict.winner() is None
    assert all(row.interval is None for row in group.rows)
    head = sentences.summarize_group(group, family)
    assert "claim" not in " ".join([head.verdict, *head.comparisons, *head.confidence])


def test_an_older_copy_does_not_shadow_the_run(tmp_path):
    put(tmp_path, a=(A, {}), b=(B, {}))
    old = shutil.copytree(tmp_path / "a-0", tmp_path / "0-backup")
    edit(old / "status.json", state="running")
    shutil.rmtree(old / "eval")
    lines = (old / "metrics.jsonl").read_text().splitlines()
    (old / "metrics.jsonl").write_text("\n".join(lines[:5]) + '\n{"step": 60, "lo')
    found = boarded(tmp_path)
    rows, _, _ = only(found)
    assert rows["a"].sample.values == (2.00, 2.01, 2.005) and rows["a"].rank == 1
    ((folder, why),) = found.unreadable
    assert folder.endswith("0-backup") and why.startswith("it is an earlier state of")
    assert why.endswith("a-0, which is counted")


@pytest.mark.parametrize("what", ["score", "history", "settings", "state"])
def test_copies_that_contradict_each_other_are_not_counted(tmp_path, what):
    put(tmp_path, a=(A, {}), b=(B, {}))
    other = shutil.copytree(tmp_path / "b-0", tmp_path / "0-other")
    if what == "score":
        path = other / "eval/100/bits_per_byte.json"
        path.write_text(path.read_text().replace("2.1", "1.1"))
    elif what == "history":
        path = other / "metrics.jsonl"
        path.write_text(path.read_text().replace('"step": 50', '"step": 51') + '{"step": 101}\n')
    elif what == "settings":
        edit(other / "run.json", settings={"model": {"width": 32}})
    else:
        edit(other / "status.json", state="failed", code=70)
    found = boarded(tmp_path)
    rows, _, _ = only(found)
    assert rows["b"].sample.values == (2.11, 2.105) and rows["b"].rank is None
    assert len(found.unreadable) == 2
    assert all("contradict each other: neither is counted" in x.reason for x in found.unreadable)


EVENTS = {
    "settings_changed": (
        {"changes": {"train.steps": [50, 100]}},
        "train.steps changed during training",
    ),
    "nonfinite_params": ({}, "its parameters were not finite at a checkpoint"),
    "environment_changed": ({}, ""),
}


@pytest.mark.parametrize("event", EVENTS)
def test_what_happened_on_the_way_is_told(tmp_path, event):
    more, why = EVENTS[event]
    put(tmp_path, a=(A, {}), b=(B, {}))
    with open(tmp_path / "a-1/events.jsonl", "a") as file:
        file.write(json.dumps({"event": event, "step": 50, **more}) + "\n")
    rows, _, _ = only(boarded(tmp_path))
    assert (rows["a"].rank is None) == bool(why) and why in " ".join(rows["a"].exclusions)
    changed = "code, packages or environment changed during training" in rows["a"].notes
    assert changed == (event == "environment_changed")


def test_a_quiet_change_of_settings_is_none(tmp_path):
    put(tmp_path, a=(A, {}), b=(B, {}))
    event = {
        "event": "settings_changed",
        "changes": {"log.every": [10, 20], "eval.tasks": [[], ["probe"]]},
    }
    with open(tmp_path / "a-1/events.jsonl", "a") as file:
        file.write(json.dumps(event) + "\n")
    assert only(boarded(tmp_path))[0]["a"].rank == 1


def test_seconds_are_those_of_a_machine(tmp_path):
    study = {"study": {"axis": "wall_clock", "value": 10.0}}
    put(tmp_path, a=(A, study), b=(B, study), c=(C, study))
    for name, changes in (
        ("a", {"devices": {"kind": "H100", "count": 8}}),
        ("c", {"packages": {"jax": "9.9"}}),
    ):
        for seed in range(3):
            edit(tmp_path / f"{name}-{seed}/run.json", **changes)
    found = boarded(tmp_path)
    assert len(found.comparable_sets) == 3 and all(
        "in hardware" in text for text in found.not_comparable
    )
    assert {f.keys["hardware"] for f in found.comparable_sets} == {
        *("8 x H100, jax 0.10.2", "1 x cpu, jax 0.10.2", "1 x cpu, jax 9.9")
    }


def test_the_front_of_time_is_of_one_machine(tmp_path):
    """b is worse and as fast, but on another machine: there nothing beats it."""
    put(tmp_path, a=(A, {}), b=(B, {}))
    rows, _, _ = only(boarded(tmp_path))
    assert "time" in rows["a"].pareto and "time" not in rows["b"].pareto
    for seed in range(3):
        edit(tmp_path / f"b-{seed}/run.json", devices={"kind": "H100", "count": 8})
    rows, _, _ = only(boarded(tmp_path))
    assert "time" in rows["a"].pareto and "time" in rows["b"].pareto


def test_whoever_has_no_say_changes_nothing(tmp_path):
    """Results from elsewhere and runs that changed on the way, with anything in their study."""
    rng = np.random.default_rng(0)
    study = declares(("b", "a"), ("c", "a"), margin=0.02, seeds=[0, 1, 2])
    put(tmp_path / "runs", a=(A, study), b=(B, study), c=(C, study))
    digests = {row.runs[0].identity for row in only(boarded(tmp_path / "runs"))[0].values()}

    def said(found):
        (group,) = (g for f in found.comparable_sets for g in f.groups if len(g.rows) >= 3)
        told = {(v.a.digest, v.b.digest, v.kind, v.p, v.metric.margin) for v in group.verdicts}
        rows = [row for row in group.rows if row.runs[0].identity in digests]
        return told, [(row.runs[0].identity, row.rank, row.sample.values) for row in rows]

    before, (family,) = said(boarded(tmp_path / "runs")), boarded(tmp_path / "runs").comparable_sets
    for number in range(25):
        anything = {
            "candidate": str(rng.choice(["a", "b", "z"])),
            "axis": "training_flops",
            "value": runs.STUDY["value"] * float(rng.uniform(0.98, 1.02)),
            "margin": float(rng.uniform(0, 9)),
            "n_comparisons": int(rng.integers(0, 99)),
            "seeds": [int(seed) for seed in rng.integers(0, 9, 3)],
            "comparisons": [[str(x) for x in rng.choice(["a", "b", "c", "z"], 2)]],
            "plan": str(rng.choice(["p" * 64, "another"])),
        }
        values = [float(x) for x in rng.uniform(1, 3, 3)]
        theirs = reported(tmp_path, family, name="theirs", values=values, study=anything)
        folder = tmp_path / "more/0"
        shutil.rmtree(folder.parent, ignore_errors=True)
        runs.run(folder, "more", 0, values[0], study=anything, model={"depth": 9})
        (folder / "events.jsonl").write_text('{"event": "rollback", "step": 5}\n')
        assert said(boarded(tmp_path / "runs", theirs, folder.parent)) == before, number
