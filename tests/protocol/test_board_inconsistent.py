"""Forged and careless results that contradict nothing but themselves: none passes in silence."""

import json

import board_runs as runs
import pytest
from test_board import boarded, edit
from test_board_attacks import copy_run, rewrite_log, write_study

import leaderboard
from protocol.board import sentences


def cheaper_training(root):
    """The FLOPs of a token are halved, so that the run may be twice as long."""
    edit(root / "moe-1/run.json", cost={"training_flops": runs.FLOPS / 2})


def cheaper_forward(root):
    """The forward pass is made cheaper as well; its terms are left."""
    terms = {"head.logits": {"model": 2e5, "executed": 2e5}, "mlp": {"model": 1.8e6, "executed": 0}}
    cost = {"training_flops": 3e6, "model_flops": 1e6, "terms": terms}
    edit(root / "moe-1/run.json", cost=cost)


def fewer_run_tokens(root):
    edit(root / "moe-1/run.json", cost={"run_tokens": 12_800})


def more_active_than_all(root):
    edit(root / "moe-1/run.json", cost={"active_params": 2_000_000})


def other_evaluation_data(root):
    edit(root / "moe-1/eval/100/bits_per_byte.json", data="e" * 64)


def negative_score(root):
    path = root / "moe-1/eval/100/bits_per_byte.json"
    tree = json.loads(path.read_text())
    runs.write(path, tree | {"scores": [s | {"value": -s["value"]} for s in tree["scores"]]})


def impossible_accuracy(root):
    scores = [{"name": "lambada/accuracy", "value": 1.2, "weight": 100}]
    tree = {"task": "lambada", "version": 1, "step": 100, "data": runs.DATA, "scores": scores}
    runs.write(root / "moe-1/eval/100/lambada.json", tree)


def finished_early(root):
    """The status is that of a run that was stopped, with another state."""
    edit(root / "moe-1/status.json", step=50)


def removed_rows(root):
    """The rows in which the loss rose are removed."""
    rewrite_log(root / "moe-1", lambda rows: [*rows[:3], *rows[6:]])


def tokens_of_another_log(root):
    """The first rows are from a run with another batch size."""
    rewrite_log(
        root / "moe-1",
        lambda rows: [
            row | ({"tokens": 2 * row["tokens"]} if row["step"] < 50 else {}) for row in rows
        ],
    )


def removed_resume(root):
    """The run was resumed with another seed, and the event is removed."""
    rewrite_log(
        root / "moe-1",
        lambda rows: [row | ({"attempt": 2} if row["step"] > 50 else {}) for row in rows],
    )


def rows_of_two_logs(root):
    """Time goes back where the rows of two logs meet."""
    rewrite_log(
        root / "moe-1",
        lambda rows: [row | ({"seconds": 0.5} if row["step"] == 60 else {}) for row in rows],
    )


def no_start(root):
    """Without the events, a change of settings on the way would not be seen."""
    (root / "moe-1/events.jsonl").write_text("")


def losses_below_zero(root):
    change_losses(root, -1.0)


def losses_that_are_not_finite(root):
    change_losses(root, "NaN")


def change_losses(root, value):
    rewrite_log(
        root / "moe-1",
        lambda rows: [r | ({"nats": value} if r["step"] in (20, 30) else {}) for r in rows],
    )


def parts_of_another_model(root):
    edit(root / "moe-1/run.json", cost={"params_by_part": {"embedding": 3, "mlp": 4}})


def more_in_blocks_than_in_all(root):
    edit(root / "moe-1/run.json", cost={"non_embedding_params": 1_000_001})


def fewer_parameters_than_other_seeds(root):
    """All costs of the run agree with each other, but not with those of its other seeds."""
    cost = {"params": 900_000, "active_params": 900_000, "non_embedding_params": 800_000}
    edit(root / "moe-1/run.json", cost=cost)


def removed_mark_of_hashes(root):
    """Without the mark, hashes that do not fit would not be looked at."""
    edit(root / "moe-1/status.json", files={"metrics.jsonl": {"size": 1, "sha256": "a" * 64}})


def seed_of_another_command(root):
    edit(root / "moe-1/run.json", command=["train.py", "--config=a.py", "--config.seed", "5"])


def more_steps_than_commanded(root):
    edit(root / "moe-1/run.json", command=["train.py", "--config.train.steps=90"])


def losses_of_another_seed(root):
    """The log of one seed is that of another, with hashes of its own."""
    path = root / "moe-0/metrics.jsonl"
    originals = [json.loads(line) for line in path.read_text().splitlines()]
    names = ("loss", "nats", "bits_per_byte")
    rewrite_log(
        root / "moe-1",
        lambda rows: [
            row | {name: other[name] for name in names if name in other}
            for row, other in zip(rows, originals, strict=True)
        ],
    )


ATTACKS = {
    cheaper_training: "it states 3e+06 FLOPs of training for a token, but three times those",
    cheaper_forward: "its terms add up to 2e+06 FLOPs, but it states 1e+06",
    fewer_run_tokens: "its costs count 12,800 tokens, but steps x batch x length is 25,600",
    more_active_than_all: "it states 2,000,000 active parameters of 1,000,000",
    other_evaluation_data: "was evaluated on data eeeeeeeeee, but it was trained on dddddddddd",
    negative_score: "must be above 0",
    impossible_accuracy: "its lambada/accuracy is 1.2, must be from 0 to 1",
    finished_early: "its status.json has finished at step 50, but it has 100 steps",
    removed_rows: "its log has 7 rows of training, but every 10 steps are a row",
    tokens_of_another_log: "tokens at step 10, but steps x batch x length is 2,560",
    removed_resume: "its log has rows of attempt 2, but its events have no resume",
    rows_of_two_logs: "its log has step 60 at 0.5 s, before step 50 at 5 s",
    seed_of_another_command: "its command sets seed to 5, but its settings have 1",
    more_steps_than_commanded: "its command sets train.steps to 90, but its settings have 100",
    losses_of_another_seed: "its log has the losses of runs/moe-0 at every step, although its seed",
    no_start: "its events.jsonl has no start, so that changes of its settings may be missing",
    losses_below_zero: "its log has nats -1 at step 20, must not be below 0",
    losses_that_are_not_finite: "its log has nats nan at step 20, although the run went on and",
    parts_of_another_model: "its parts add up to 7 parameters, but it states 1,000,000",
    more_in_blocks_than_in_all: "it states 1,000,001 parameters without embedding of 1,000,000",
    fewer_parameters_than_other_seeds: "it states 900000 params, other runs of the same settings",
    removed_mark_of_hashes: "its status.json has the hashes of its files",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_run_that_contradicts_itself_is_excluded_and_named(tmp_path, attack, capsys):
    root = write_study(tmp_path / "runs")
    attack(root)
    rows = [row for s in boarded(root).comparable_sets for row in s.rows]
    excluded = [row for row in rows if any(ATTACKS[attack] in text for text in row.exclusions)]
    assert [row.name for row in excluded] == ["moe"] and not excluded[0].is_ranked
    assert leaderboard.main([str(root), "--check"]) == 65
    assert ATTACKS[attack] in capsys.readouterr().out.replace("\n", " ")


def test_seeds_with_one_score_are_named(tmp_path):
    values = {"dense": [2.3, 2.31, 2.305], "moe": [2.1, 2.1, 2.105]}
    board = boarded(write_study(tmp_path / "runs", values))
    comparable_set = board.comparable_sets[0]
    text = " ".join(sentences.summarize_group(comparable_set.groups[0], comparable_set).confidence)
    assert "moe: the seeds 0 and 1 have the same score, 2.1, to the last digit" in text
    assert "dense: the seeds" not in text
    assert "6 of 6 runs are not sealed: their files have no hashes" in text


def test_the_flags_of_a_study_are_not_those_of_its_runs(tmp_path):
    root = write_study(tmp_path / "runs")
    edit(root / "moe-1/run.json", command=["compare.py", "--config.seed=5"])
    assert not any(row.exclusions for s in boarded(root).comparable_sets for row in s.rows)


def test_a_planted_copy_does_not_exclude_the_run_that_it_copies(tmp_path):
    root = write_study(tmp_path / "runs")
    copy_run(root / "dense-0", root / "moe-2", settings={"seed": 7}, study={"candidate": "planted"})
    rows = {row.name: row for s in boarded(root).comparable_sets for row in s.rows}
    assert not rows["dense"].exclusions
    (planted,) = (row for row in rows.values() if row.exclusions)
    assert "its last checkpoint is that of runs/dense-0, another run" in " ".join(
        planted.exclusions
    )


def test_without_evidence_of_the_original_both_are_excluded(tmp_path):
    root = write_study(tmp_path / "runs")
    copy_run(root / "dense-0", root / "copy", study={"candidate": "planted"})
    path = root / "copy/checkpoints/100/MANIFEST.json"
    runs.write(path, json.loads(path.read_text()) | {"run_id": "copy"})
    (root / "plan.json").unlink()
    rows = [row for s in boarded(root).comparable_sets for row in s.rows]
    reasons = " ".join(text for row in rows for text in row.exclusions)
    assert "is that of runs/dense-0, another run" in reasons
    assert "is that of runs/copy, another run" in reasons
