"""Forged and careless results: each contradiction is excluded or stated, none passes in silence."""

import itertools
import json
import math
import shutil

import board_runs as runs
import pytest
from test_board import boarded, edit, only

import leaderboard
from protocol.board import sentences
from protocol.records.plan_file import NON_IDENTITY_SETTINGS, hash_json, without_settings

VALUES = {
    "dense": [2.30, 2.31, 2.305],
    "moe": [2.10, 2.11, 2.105],
    "mamba2": [2.00, 2.01, 2.006],
}
CURVE = {"learning_rates": [0.001, 0.002, 0.004, 0.008], "scores": [2.5, 2.4, 2.3, 2.35]}
DECLARED = {
    **{"axis": "training_flops", "metric": "test/bits_per_byte", "better": "lower"},
    **{"margin": 0.02, "reference": "dense", "is_paired": False, "looks": []},
    **{"tuning_seeds": [1000], "varied_settings": [], "seeds": [0, 1, 2]},
}


def write_study(root, values=VALUES, *, search=(), picks_of=None, **declared):
    """Writes a study that is sound: its runs, and the plan that they declare.

    `search` are the trials of a declared search, and `picks_of` what a candidate's choice records.
    """
    star = [[name, "dense"] for name in values if name != "dense"]
    study = DECLARED | {"comparisons": star} | declared
    layers = {name: {"layers": [f"{name}+mlp"]} for name in values}
    value = runs.STUDY["value"]
    cells, picks = [], []
    for name in values:
        settings = runs.settings(0, {"model": layers[name]})
        key = {"candidate": name, "objective": "causal_lm", "size": "only"}
        identity = without_settings(settings, NON_IDENTITY_SETTINGS)
        cells.append(key | {"isoflop_curve": "", "value": value, "settings": identity})
        picks.append(
            key
            | {"learning_rate": 0.004, "n_trials": 5, "overrides": {}, "curve": CURVE}
            | (picks_of or {}).get(name, {})
        )
    plan = {"study": study, "cells": cells}
    if search:
        plan["tuning"] = {"metric": "valid/bits_per_byte", "search": {"trials": list(search)}}
    choices = {"sweep": "s" * 64, "cells": picks}
    write_plans(root, (plan, choices))
    stated = study | {"plan": hash_json(plan), "choices": hash_json(choices)}
    stated |= {"n_comparisons": len(study["comparisons"])}
    for name, scores in values.items():
        for seed, score in zip(study["seeds"], scores, strict=False):
            write_run(root / f"{name}-{seed}", name, seed, score, stated, layers[name])
    return root


def write_plans(root, *plans):
    tree = {"format": 1, "plans": [{"declared": p, "choices": c} for p, c in plans]}
    runs.write(root / "plan.json", tree)


def write_run(folder, name, seed, score, study, model):
    """Writes a run whose log and checkpoint support its score."""
    nats = score * math.log(2)  # the fixture counts one token and one byte
    more = {"scores": [("test/nats_per_token", nats)], "study": study, "model": model}
    runs.run(folder, name, seed, score, **more)
    final = {"step": 100, "attempt": 1, "test/bits_per_byte": score, "test/nats_per_token": nats}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(final) + "\n")
    path = folder / "checkpoints/100/MANIFEST.json"
    manifest = json.loads(path.read_text())
    runs.write(path, manifest | {"step": 100, "files": {"d": {"sha256": f"{name} {seed}"}}})


def rewrite_log(folder, change):
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def set_score(folder, name, value):
    path = folder / "eval/100/bits_per_byte.json"
    tree = json.loads(path.read_text())
    for score in tree["scores"]:
        score["value"] = value if score["name"] == name else score["value"]
    runs.write(path, tree)


def set_weight(folder, weight):
    path = folder / "eval/100/bits_per_byte.json"
    tree = json.loads(path.read_text())
    for score in tree["scores"]:
        score["weight"] = weight
    runs.write(path, tree)


def copy_run(source, target, **changes):
    """Copies a run under another run_id."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    edit(target / "run.json", run_id=target.name, **changes)


# Attacks on a sound study: what is forged, and the reason that is stated of the row.


def edited_score(root):
    set_score(root / "moe-1", "test/bits_per_byte", 1.5)


def edited_score_and_nats(root):
    edited_score(root)
    set_score(root / "moe-1", "test/nats_per_token", 1.5 * math.log(2))


def edited_score_nats_and_log(root):
    """Only the other splits of the evaluation are as before."""
    edited_score_and_nats(root)
    set_weight(root / "moe-1", 2)
    rewrite_log(
        root / "moe-1",
        lambda rows: [*rows[:-1], {k: v for k, v in rows[-1].items() if k == "step"}],
    )


def copied_run(root):
    """One run stands for three seeds, with another score each."""
    for seed in (1, 2):
        copy_run(root / "moe-0", root / f"moe-{seed}", settings={"seed": seed})


def copied_checkpoint(root):
    """The log was made up, but the checkpoint is that of another run."""
    manifest = json.loads((root / "moe-0/checkpoints/100/MANIFEST.json").read_text())
    own = json.loads((root / "moe-1/run.json").read_text())["run_id"]
    runs.write(root / "moe-1/checkpoints/100/MANIFEST.json", manifest | {"run_id": own})


def replaced_seed(root):
    """The worst seed is replaced; the hash of the plan stays."""
    shutil.move(root / "moe-1", root / "moe-3")
    edit(root / "moe-3/run.json", settings={"seed": 3})
    for seed in (0, 2, 3):
        edit(root / f"moe-{seed}/run.json", study={"seeds": [0, 2, 3]})


def fewer_comparisons(root):
    for folder in root.glob("*-*"):
        edit(folder / "run.json", study={"comparisons": [["moe", "dense"]], "n_comparisons": 1})


def fewer_trials(root):
    for folder in root.glob("dense-*"):
        edit(folder / "run.json", study={"tuning_trials": 9})


def other_rate(root):
    for folder in root.glob("moe-*"):
        edit(folder / "run.json", settings={"optimizer": {"learning_rate": 0.006}})


def other_width(root):
    for folder in root.glob("moe-*"):
        edit(folder / "run.json", settings={"model": {"width": 160}})


def edited_plan(root):
    tree = json.loads((root / "plan.json").read_text())
    tree["plans"][0]["declared"]["study"]["margin"] = 0.5
    runs.write(root / "plan.json", tree)


def edited_choices(root):
    tree = json.loads((root / "plan.json").read_text())
    tree["plans"][0]["choices"]["cells"][0]["n_trials"] = 50
    runs.write(root / "plan.json", tree)


def edited_sweep(root):
    """The rate is not the optimum of its curve, and all hashes are made to agree."""
    tree = json.loads((root / "plan.json").read_text())
    choices = tree["plans"][0]["choices"]
    for cell in choices["cells"]:
        if cell["candidate"] == "moe":
            cell["curve"] = CURVE | {"scores": [2.5, 2.2, 2.3, 2.35]}
    runs.write(root / "plan.json", tree)
    for folder in root.glob("*-*"):
        edit(folder / "run.json", study={"choices": hash_json(choices)})


def extended_run(root):
    """It was trained twice as long, and the event is removed."""
    for seed in range(3):
        rewrite_log(
            root / f"moe-{seed}",
            lambda rows: [*rows, *({**row, "step": row["step"] + 100} for row in rows)],
        )


def more_tokens(root):
    for seed in range(3):
        rewrite_log(
            root / f"moe-{seed}",
            lambda rows: [
                row | ({"tokens": 2 * row["tokens"]} if "tokens" in row else {}) for row in rows
            ],
        )


def no_log(root):
    (root / "moe-1/metrics.jsonl").unlink()


def no_manifest(root):
    (root / "moe-1/checkpoints/100/MANIFEST.json").unlink()


def foreign_manifest(root):
    edit(root / "moe-1/checkpoints/100/MANIFEST.json", run_id="another")


def tuning_seed(root):
    for seed in range(3):
        edit(root / f"moe-{seed}/run.json", settings={"seed": 1000 + seed})


def rerun_until_good(root):
    """A seed is trained again until it is good; the folder's name comes first."""
    copy_run(root / "moe-1", root / "aaa")
    for name in ("test/bits_per_byte", "test/nats_per_token"):
        value = 2.0 if name.endswith("byte") else 2.0 * math.log(2)
        set_score(root / "aaa", name, value)
        rewrite_log(root / "aaa", lambda rows, n=name, v=value: [*rows[:-1], rows[-1] | {n: v}])
    edit(root / "aaa/checkpoints/100/MANIFEST.json", run_id="aaa", files={"d": {"sha256": "aaa"}})


ATTACKS = {
    edited_score: "is 1.5, but its nats per token, tokens and bytes give 2.11",
    edited_score_and_nats: "its test/bits_per_byte is 1.5, but its log has 2.11",
    edited_score_nats_and_log: "it counts 2 bytes of test, other runs on the same data 1",
    copied_run: "it saw the batches of ",
    copied_checkpoint: "its last checkpoint is that of ",
    replaced_seed: "it declares seeds [0, 2, 3], its plan [0, 1, 2]",
    fewer_comparisons: "it declares n_comparisons 1, its plan 2",
    fewer_trials: "it declares 9 tuning trials, its plan 5",
    other_rate: "its learning rate is 0.006, tuning selected 0.004",
    other_width: "it has model.width 160, its plan 128",
    edited_plan: "plan.json has no plan with the hash",
    edited_choices: "plan.json has no tuning choices with the hash",
    edited_sweep: "its learning rate 0.004 is not the optimum of its recorded sweep, 0.002",
    extended_run: "its log ends at step 200, but it has 100 steps",
    more_tokens: "its log counts 51,200 tokens, but steps x batch x length is 25,600",
    no_log: "no log, so that nothing supports its score",
    no_manifest: "no manifest of its last checkpoint, so that nothing supports its score",
    foreign_manifest: "its last checkpoint is of the run another",
    tuning_seed: "its seed 1000 served to select settings",
    rerun_until_good: "seed 1 has two results, 2 (",
}
OF_ANOTHER_ROW = {fewer_trials: "dense"}  # the rows that an attack makes, if they are not moe's


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_contradiction_is_excluded_and_named(tmp_path, attack, capsys):
    root = write_study(tmp_path / "runs")
    sound = only(boarded(root))[1]
    assert {v.winner() for v in sound.verdicts} == {"moe", "mamba2"} and not sound.data_problems
    attack(root)
    found = boarded(root)
    rows = [row for family in found.comparable_sets for g in family.groups for row in g.rows]
    name = OF_ANOTHER_ROW.get(attack, "moe")
    forged = [row for row in rows if row.name.startswith(name)]
    assert forged and not any(row.is_ranked for row in forged)
    assert any(ATTACKS[attack] in text for row in forged for text in row.exclusions), [
        row.exclusions for row in forged
    ]
    groups = [group for family in found.comparable_sets for group in family.groups]
    assert not any(name == v.winner() for group in groups for v in group.verdicts)
    assert leaderboard.main([str(root), "--check"]) == 65
    assert ATTACKS[attack] in capsys.readouterr().out.replace("\n", " ")


def test_a_sound_study_has_no_contradiction(tmp_path, capsys):
    root = write_study(tmp_path / "runs")
    assert leaderboard.main([str(root), "--check"]) == 0
    assert capsys.readouterr().out == "9 runs, no contradictions\n"
    rows, group, family = only(boarded(root))
    assert group.reference.name == "dense" and all(not row.problems for row in rows.values())
    confidence = " ".join(sentences.summarize_group(group, family).confidence)
    assert "plan.json" not in confidence and "do not assume" not in confidence
    (root / "plan.json").unlink()
    _, group, family = only(boarded(root))
    confidence = sentences.summarize_group(group, family).confidence
    assert "No plan.json is beside these runs, so that what they declare cannot be checked." in (
        confidence
    )
    assert len(group.verdicts) == 2  # it is stated, and nothing is lost


def test_without_a_plan_the_runs_of_one_hash_must_agree(tmp_path):
    root = write_study(tmp_path / "runs")
    (root / "plan.json").unlink()
    replaced_seed(root)
    rows, group, _ = only(boarded(root))
    assert "declare other seeds" in rows["moe"].exclusions[0]
    assert not any("moe" in (v.a.name, v.b.name) for v in group.verdicts)
    assert rows["mamba2"].rank == 1  # the others are not affected


def test_a_damaged_plan_is_one_line_and_nothing_is_lost(tmp_path):
    root = write_study(tmp_path / "runs")
    (root / "plan.json").write_text("{")
    found = boarded(root)
    (item,) = found.unreadable
    assert item.folder == "runs/plan.json" and "damaged" in item.reason
    assert len(only(found)[1].verdicts) == 2


def test_validation_scores_make_no_claim(tmp_path):
    root = write_study(tmp_path / "runs", metric="valid/bits_per_byte")
    rows, group, _ = only(boarded(root))
    assert not group.verdicts and not any(row.is_ranked for row in rows.values())
    assert "the validation split, on which settings are chosen" in rows["moe"].exclusions[0]


def test_seeds_added_under_another_plan_do_not_count(tmp_path):
    """The first plan alone is declared: adding seeds until a claim is made would find one."""
    root = write_study(tmp_path / "runs")
    before = only(boarded(root))[1].verdicts
    first = json.loads((root / "plan.json").read_text())["plans"][0]
    more = {name: [*values, 1.0, 1.1] for name, values in VALUES.items()}
    write_study(tmp_path / "more", more, seeds=[0, 1, 2, 3, 4])
    for folder in (tmp_path / "more").glob("*-[34]"):
        shutil.move(folder, root / folder.name)
    later = json.loads((tmp_path / "more/plan.json").read_text())["plans"][0]
    write_plans(root, *((p["declared"], p["choices"]) for p in (first, later)))
    rows, group, _ = only(boarded(root))
    assert [row.sample.n_runs for row in rows.values()] == [3, 3, 3]
    assert all("2 seeds (3, 4) added after the first plan" in r.notes[0] for r in rows.values())
    assert [(v.p, v.n_comparisons) for v in group.verdicts] == [(v.p, 2) for v in before]
    write_plans(root, *((p["declared"], p["choices"]) for p in (later, first)))
    assert only(boarded(root))[0]["moe"].sample.n_runs == 5  # it was the first


def test_a_plan_with_more_seeds_counts_its_pairs_once(tmp_path):
    """Runs of two plans of the same seeds, as if the second named one candidate more."""
    root = write_study(tmp_path / "runs")
    before = [v.p for v in only(boarded(root))[1].verdicts]
    (root / "plan.json").unlink()
    for folder in root.glob("*-2"):
        edit(folder / "run.json", study={"plan": "q" * 64})
    verdicts = only(boarded(root))[1].verdicts
    assert [v.p for v in verdicts] == before and {v.n_comparisons for v in verdicts} == {2}


def test_declared_looks_are_tested_at_a_lower_level(tmp_path):
    values = {"dense": [2.3, 2.31, 2.305, 2.3, 2.31], "moe": [2.1, 2.11, 2.105, 2.1]}
    root = write_study(tmp_path / "runs", values, seeds=[0, 1, 2, 3, 4], looks=[3, 5])
    rows, group, _ = only(boarded(root))
    (verdict,) = group.verdicts
    assert verdict.winner() == "moe" and "at look 1 of 2" in verdict.sentence
    assert (
        rows["moe"].sample.n_runs == 3 and "1 run will count at the next look" in rows["moe"].notes
    )
    assert verdict.alpha == pytest.approx(0.0304, abs=5e-4)  # a little above Pocock's .0294: 3 of 5
    few = write_study(
        tmp_path / "few",
        {"dense": [2.3, 2.31], "moe": [2.1, 2.2]},
        seeds=[0, 1, 2, 3, 4],
        looks=[3, 5],
    )
    assert not any(row.is_ranked for row in only(boarded(few))[0].values())


def test_paired_candidates_are_compared_by_seed(tmp_path):
    shift = [0.0, 0.2, -0.1]  # what the seeds share
    values = {"dense": [2.3 + x for x in shift], "moe": [2.28 + x for x in shift]}
    values["moe"][0] += 0.002
    apart = only(boarded(write_study(tmp_path / "a", values)))[1].verdicts[0]
    paired = only(boarded(write_study(tmp_path / "b", values, is_paired=True)))[1].verdicts[0]
    assert apart.kind == "inconclusive" and paired.winner() == "moe"
    assert "paired" in paired.sentence


def test_pairs_that_saw_other_data_are_not_compared(tmp_path, capsys):
    root = write_study(tmp_path / "runs")

    def other_batches(rows):
        return [
            row | {"data_hash": "f" * 63 + str(i)} if 3 <= i < 10 else row
            for i, row in enumerate(rows)
        ]

    rewrite_log(root / "moe-1", other_batches)
    rows, group, family = only(boarded(root))
    problem = "moe and dense are not compared: they saw other data after step 30 of 100 (seed 1)"
    assert problem in group.problems and rows["moe"].place_text == ""
    assert [(v.a.name, v.n_comparisons) for v in group.verdicts] == [("mamba2", 2)]
    assert problem + "." in sentences.summarize_group(group, family).confidence
    assert leaderboard.main([str(root), "--check"]) == 65
    assert "saw other data after step 30" in capsys.readouterr().out.replace("\n", " ")


def test_a_copy_that_differs_in_what_nothing_reads_is_named(tmp_path):
    for name, optimizer in (("a", {}), ("b", {"newton_schulz_steps": 9})):
        runs.candidate(tmp_path, name, VALUES[["moe", "dense"][name == "b"]], optimizer=optimizer)
    rows, group, family = only(boarded(tmp_path))
    assert [v.kind for v in group.verdicts] == ["duplicate"]
    assert rows["b"].copy_of == "a" and not any(row.is_ranked for row in rows.values())
    assert sentences.summarize_group(group, family).verdict == "Nothing is ranked here."
    for name, model in (("c", {"width": 96}), ("d", {"width": 160})):
        runs.candidate(tmp_path, name, VALUES["mamba2"], model=model)  # equal to the last digit
    rows, group, _ = only(boarded(tmp_path))
    assert rows["d"].copy_of == "c" and rows["c"].is_ranked
    assert any(
        "nothing reads the settings in which they differ" in v.sentence for v in group.verdicts
    )


def test_a_wide_margin_and_a_difference_inside_it_are_stated(tmp_path):
    _, group, family = only(boarded(write_study(tmp_path / "runs", margin=5.0)))
    texts = sentences.summarize_group(group, family)
    assert {v.kind for v in group.verdicts} == {"equivalent"}
    assert all(
        "although" in text and "has lower bits per byte" in text for text in texts.comparisons
    )
    assert any(
        "The declared margin, 5, is wider than all differences here (0.3)" in text
        for text in texts.confidence
    )


def test_what_rows_were_trained_with_and_their_seeds_are_stated(tmp_path):
    for seed in (0, 2, 7):
        runs.run(tmp_path / f"a-{seed}", "a", seed, 2.0 + seed / 100)
        runs.run(tmp_path / f"b-{seed}", "b", seed, 2.5 + seed / 100, model={"depth": 6})
        edit(tmp_path / f"b-{seed}/run.json", code={"commit": "d" * 40}, packages={"jax": "0.11"})
        variables = {"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16", "CUDA_VISIBLE_DEVICES": "3"}
        edit(tmp_path / f"b-{seed}/run.json", environment=variables, devices={"kind": "H100"})
    _, group, family = only(boarded(tmp_path))
    texts = " ".join(sentences.summarize_group(group, family).confidence)
    assert "trained with 2 versions of the code" in texts and "2 versions of packages" in texts
    assert "trained with 2 kinds of hardware" in texts
    assert "under other values of JAX_DEFAULT_MATMUL_PRECISION in the environment" in texts
    assert "a has the seeds 0, 2, 7, which no plan declares." in texts


def test_skipped_updates_are_stated(tmp_path):
    """The rows have means over ten steps: three of twenty updates were not applied."""
    root = write_study(tmp_path / "runs")

    def skip(rows):
        shares = {10: 0.1, 20: 0.2}
        return [r | ({"skipped": shares.get(r["step"], 0.0)} if "loss" in r else {}) for r in rows]

    rewrite_log(root / "moe-1", skip)
    rewrite_log(root / "dense-1", lambda rows: [row | {"skipped": 0.0} for row in rows])
    _, group, family = only(boarded(root))
    texts = " ".join(sentences.summarize_group(group, family).confidence)
    assert "moe: 1 of its runs skipped 3 of 100 updates" in texts and "dense: " not in texts


def test_a_split_whose_text_was_trained_on_is_stated(tmp_path):
    root = write_study(tmp_path / "runs")
    for folder in root.glob("moe-*"):
        edit(folder / "run.json", data={"shared_text": {"test": 0.31, "valid": 0.9}})
    _, group, family = only(boarded(root))
    texts = " ".join(sentences.summarize_group(group, family).confidence)
    assert "31 % of the test split (documents, or 13 words in a row) is in another" in texts
    assert "valid" not in texts


def test_costs_are_relative_to_the_reference_and_all_differences_are_listed(tmp_path):
    root = write_study(tmp_path / "runs")
    many = {f"setting{i}": i for i in range(9)}
    for folder in root.glob("moe-*"):
        edit(folder / "run.json", settings={"model": many, "optimizer": {"warmup": 9}})
    (root / "plan.json").unlink()
    _, group, family = only(boarded(root))
    texts = sentences.summarize_group(group, family)
    assert all("relative to dense" in text for text in texts.costs if "relative" in text)
    assert texts.differences.partition(" differ in ")[2].startswith("optimizer.warmup, ")
    assert all(f"model.{name}" in texts.differences for name in many)


@pytest.mark.parametrize("n_pairs", [2, 3])
def test_no_rank_contradicts_a_verdict(tmp_path, n_pairs):
    """The quickstart's own scores: moe was before dense, from which it is not distinguishable."""
    values = {
        "mamba2": [2.677, 2.688, 2.738],
        "hybrid": [2.937, 2.957, 3.064],
        "moe": [3.135, 3.205, 3.216],
        "dense": [3.2726, 3.3927, 3.2521],
    }
    all_pairs = [list(pair) for pair in itertools.combinations(values, 2)]
    star = [[name, "dense"] for name in ("moe", "mamba2", "hybrid")]
    pairs = star if n_pairs == 2 else all_pairs
    rows, group, family = only(boarded(write_study(tmp_path / "r", values, comparisons=pairs)))
    verdict = sentences.summarize_group(group, family).verdict
    if pairs is star:
        assert all(row.rank is None for row in rows.values()) and group.order == "reference"
        assert [rows[name].place_text for name in values] == [
            *("above", "above", "not distinguished", "reference")
        ]
        assert verdict == (
            "mamba2 and hybrid are shown to be better than dense; moe is not distinguishable from "
            "dense by these runs."
        )
    else:
        assert group.order == "ranks"
        for v in group.verdicts:
            if defeat := v.defeat():
                better, worse = (rows[name].rank_interval for name in defeat)
                assert better.low < worse.low and better.high < worse.high
        assert rows["moe"].rank_interval == rows["dense"].rank_interval


def test_the_cost_of_a_whole_study_is_stated(tmp_path):
    """Tuning runs in the folder, else what plan.json records of the sweep, and the evaluation."""
    root = write_study(tmp_path / "runs")
    one = runs.STUDY["value"]  # FLOPs of a run
    for rate in (0.002, 0.008):
        more = {"optimizer": {"learning_rate": rate}, "model": {"layers": ["moe+mlp"]}}
        tuning = {"study": {"role": "tuning", "plan": "t" * 64}, **more}
        runs.run(root / f"tune-{rate}", "moe", 1000, 2.5, **tuning)
    rows, group, family = only(boarded(root))
    evaluated = rows["moe"].costs["study_flops"] - 5 * one
    # Each run evaluates one token of nats per token, forward: a third of what training costs.
    assert evaluated == pytest.approx(3 * runs.FLOPS / 3)
    assert rows["moe"].costs["study_seconds"] == pytest.approx(5 * 10.0)
    texts = sentences.summarize_group(group, family).costs
    (text,) = (text for text in texts if text.startswith("The study of moe cost "))
    assert "2 tuning and noise floor runs 3.07e11, 3 reported runs 4.61e11" in text
    assert rows["dense"].costs["study_flops"] == pytest.approx(3 * one, rel=1e-3)


def test_what_evaluation_tasks_train_is_a_cost_of_the_study(tmp_path):
    """Fine-tuning can cost more than the run; its seconds are in those of its task."""
    scores = [("finetune_genre/accuracy", 0.5), ("finetune_genre/flops", 4e12)]
    runs.candidate(tmp_path, "dense", (2.0, 2.01, 2.02), scores=scores)
    for path in tmp_path.glob("*/eval/100/*.json"):
        runs.write(path, json.loads(path.read_text()) | {"seconds": 7.0})
    rows, _, _ = only(boarded(tmp_path))
    costs, one = rows["dense"].costs, runs.STUDY["value"]
    assert costs["study_flops"] == pytest.approx(3 * one + 3 * 4e12)
    # 100 steps of 0.1 s, and the evaluation, of which no forward pass is counted.
    assert costs["study_seconds"] == pytest.approx(3 * (10 + 7))
    assert "3 reported runs 4.61e11, training by evaluation tasks 1.20e13)" in (
        rows["dense"].study_cost
    )
