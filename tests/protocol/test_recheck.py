"""Checks that compute again: costs, evaluations and whole runs, on one real run."""

import json
import shutil

import pytest
from board_runs import write

import leaderboard
from errors import DataError
from eval import __main__ as eval_command
from eval.again import ScorePair
from protocol.records.inert_settings import (
    OBJECTIVE_SECTIONS,
    OPTIMIZER_READERS,
    PART_SECTIONS,
    drop_inert,
)
from protocol.records.safe_read import CheckedFields


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run, with the step of its last checkpoint."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def edit_score(run, name, value):
    (path,) = run.glob("eval/*/bits_per_byte.json")
    tree = json.loads(path.read_text())
    for score in tree["scores"]:
        score["value"] = value if score["name"] == name else score["value"]
    write(path, tree)


def test_an_edited_score_is_found_by_evaluating_again(run, capsys):
    eval_command.run([f"--run={run}", "--tasks=bits_per_byte", "--again"])
    assert "differs" not in capsys.readouterr().out
    edit_score(run, "test/bits_per_byte", 2.0)
    with pytest.raises(DataError, match=r"recorded 2.0, again \d") as error:
        eval_command.run([f"--run={run}", "--tasks=bits_per_byte", "--again"])
    assert error.value.code == 65
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "differs" in line)
    assert line.startswith("test/bits_per_byte") and "recorded 2, again" in line
    with pytest.raises(DataError, match="does not exist"):
        eval_command.run([f"--run={run}", "--tasks=positions", "--again"])


def test_an_edited_cost_is_found_by_computing_it_again(run, capsys):
    assert leaderboard.main([str(run), "--check", "--cost"]) == 0, capsys.readouterr().out
    record = json.loads((run / "run.json").read_text())
    record["cost"]["params"] //= 2
    write(run / "run.json", record)
    assert leaderboard.main([str(run), "--check", "--cost"]) == 65
    assert "its cost.params is" in capsys.readouterr().out
    assert leaderboard.main([str(run), "--cost"]) == 2


@pytest.mark.slow
def test_a_run_that_is_trained_again_is_compared(run, capsys):
    assert leaderboard.main([str(run), "--rerun=1"]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "the hashes of its data are the same" in out and "0 differ" in out
    edit_score(run, "test/bits_per_byte", 2.0)
    assert leaderboard.main([str(run), "--rerun=1"]) == 65
    assert "test/bits_per_byte: recorded 2, again" in capsys.readouterr().out.replace("\n", " ")


def test_scores_of_a_machine_may_differ():
    assert not ScorePair("decode_ms_per_token@64", 1.0, 2.0).differs
    assert ScorePair("test/bits_per_byte", 1.0, 1.001).differs
    assert not ScorePair("test/bits_per_byte", 1.0, 1.0 + 1e-9).differs
    assert ScorePair("x", None, 1.0).differs and ScorePair("x", "a", "b").differs


def test_the_tables_of_inert_settings_are_those_of_the_code():
    from arch.config import CHANNELS, MIXERS, ModelConfig
    from objectives import OBJECTIVES
    from training.settings import Settings

    names = (*MIXERS, *CHANNELS, "side_by_side")
    sections = {name for name in names if hasattr(ModelConfig(), name)}
    assert sections == {*PART_SECTIONS}, "name the part in protocol/records/inert_settings.py"
    assert {*OBJECTIVE_SECTIONS} == {*OBJECTIVES, "mixture"}, "name the objective there"
    optimizer = Settings().optimizer
    assert all(hasattr(optimizer, name) for name in OPTIMIZER_READERS)
    tree = {
        "objective": "causal_lm",
        "masked_lm": {"mask_rate": 0.2},
        "model": {"layers": ["attention@a+mlp"], "attention": {"heads": 2}, "moe": {"width": 1}},
        "optimizer": {"name": "adamw", "newton_schulz_steps": 9, "beta2": 0.9},
    }
    kept = drop_inert(CheckedFields(tree, "settings"))
    assert kept["model"] == {"layers": ["attention@a+mlp"], "attention": {"heads": 2}}
    assert kept["optimizer"] == {"name": "adamw", "beta2": 0.9} and "masked_lm" not in kept
