"""The recipes of docs/ followed to the letter: their files written, their lines added, and run."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import test_contracts
import test_objectives
import tiny

from arch import config as arch_config
from objectives import OBJECTIVES, CausalLM

ROOT = Path(__file__).parents[1]
PAGES = ("mixer", "objective", "task")
FILES = {  # that a page writes, by how they begin
    '"""Running mean': "arch/running_mean.py",
    '"""A running mean': "configs/compare/running_mean.py",
    '"""Predict the next': "objectives/goldfish.py",
    '"""The share of tokens': "eval/sure.py",
}


def blocks(page, language):
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    return re.findall(rf"^(?:.*`(\S+)`.*\n\n)?```{language}\n((?:.*\n)*?)```", text, re.M)


def written(page):
    """The files that a page has its reader write."""
    for _, source in blocks(page, "python"):
        (path,) = (path for begin, path in FILES.items() if source.startswith(begin))
        assert f"`{path}`" in (ROOT / "docs" / f"{page}.md").read_text("utf-8")
        yield path, source


def edited(text, diff):
    """`text` after a diff whose places are lines of context, in their order."""
    lines, at = text.splitlines(), 0
    for mark, line in ((row[:1], row[1:]) for row in diff.splitlines()):
        if mark == "+":
            lines.insert(at, line)
            at += 1
        else:
            at = lines.index(line, at) + (mark == " ")
            if mark == "-":
                del lines[at]
    return "\n".join(lines) + "\n"


def module(monkeypatch, page, path):
    """A file of a page, as a module that can be imported."""
    name = path.removesuffix(".py").replace("/", ".")
    made = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(dict(written(page))[path], path, "exec"), made.__dict__)
    return made


@pytest.fixture
def running_mean(monkeypatch):
    made = module(monkeypatch, "mixer", "arch/running_mean.py")
    monkeypatch.setitem(arch_config.MIXERS, "running_mean", made.RunningMean)
    yield "running_mean"
    tiny.model.cache_clear()


@pytest.fixture
def goldfish(monkeypatch):
    made = module(monkeypatch, "objective", "objectives/goldfish.py")
    monkeypatch.setitem(OBJECTIVES, "goldfish", made.Goldfish)
    return made.Goldfish


@pytest.mark.slow
def test_the_mixer_keeps_every_contract(running_mean):
    changes = tiny.BOTH
    test_contracts.test_views(running_mean, changes)
    test_contracts.test_packed_documents_are_as_if_alone_and_padding_changes_nothing(
        running_mean, changes
    )
    test_contracts.test_prefill_and_steps_are_the_parallel_form(running_mean, changes)
    test_contracts.test_precision(running_mean, changes)
    test_contracts.test_cost_counts_every_leaf_and_every_multiply_add(running_mean, changes)
    for length in (0, 1, 7):
        test_contracts.test_values_and_gradients_are_finite_and_every_parameter_gets_one(
            running_mean, changes, length
        )
    test_contracts.test_scanned_unrolled_and_rematerialised_are_one_function(running_mean, "mlp")
    test_contracts.test_every_mesh_computes_what_one_device_does(running_mean, "mlp")


def test_the_mixer_learns(running_mean):
    test_objectives.test_the_loss_falls_below_the_unigram("masked_lm", running_mean)


def test_the_objective_leaves_out_a_share_of_the_targets(goldfish):
    objective, pieces = goldfish(drop=0.3), [np.arange(1500), np.arange(400)]
    makers = [o.host(tiny.config(), 2000, test_objectives.Words()) for o in (objective, CausalLM())]
    row, plain = (make(pieces, 2000, np.random.default_rng(0)) for make in makers)
    assert row.keys() == plain.keys()
    assert all((row[name] == plain[name]).all() for name in row.keys() - {"weights"})
    asked = plain["weights"] == 1
    assert not row["weights"][~asked].any()
    assert row["weights"][asked].mean() == pytest.approx(0.7, abs=0.05)
    assert goldfish(drop=0.3).judged() == CausalLM()


@pytest.mark.slow
def test_the_objective_keeps_what_all_objectives_do(goldfish):
    test_objectives.test_the_loss_falls_below_the_unigram("goldfish", "attention")
    test_objectives.test_microbatches_add_up_to_the_batch("goldfish")
    test_objectives.test_a_batch_without_a_target_is_no_nan("goldfish")


def test_every_diff_of_a_page_fits_its_file():
    for page in PAGES:
        found = blocks(page, "diff")
        assert found
        for path, diff in found:
            before = (ROOT / path).read_text("utf-8")
            added = [row[1:] for row in diff.splitlines() if row[0] == "+"]
            after = edited(before, diff)
            assert all(line in after.splitlines() for line in added)
            compile(after, path, "exec")


@pytest.mark.slow
def test_a_reader_who_does_all_of_it_sees_it_on_the_board(tmp_path):
    """In a copy of the project: mixer, objective and task in one run, and the study's plan."""
    root = tmp_path / "isoflop"
    hidden = shutil.ignore_patterns(".*", "runs", "docs", "notebooks", "__pycache__")
    shutil.copytree(ROOT, root, ignore=hidden)
    for page in PAGES:
        for path, source in written(page):
            (root / path).write_text(source, "utf-8")
        for path, diff in blocks(page, "diff"):
            (root / path).write_text(edited((root / path).read_text("utf-8"), diff), "utf-8")

    def command(*words):
        done = subprocess.run(
            [sys.executable, *words], cwd=root, env=own, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    own = os.environ | {"XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(root)}
    for split in ("train", "valid", "test"):
        (root / f"{split}.txt").write_text(f"What is read of {split} is short. " * 40)
    small = ["train.steps=2", "train.batch=2", "train.length=64", "data.source=text"]
    small += ["data.path=train.txt", "data.valid_path=valid.txt", "data.test_path=test.txt"]
    command(
        "train.py",
        *("--config=configs/dense.py:tiny", "--workdir=run", "--config.objective=goldfish"),
        *(f"--config.{one}" for one in small),
        "--config.data.cache=cache",
        *("--config.model.width=32", "--config.model.depth=2", "--config.optimizer.warmup=1"),
        "--config.model.layers=('running_mean+mlp', 'attention+moe')",
        *("--config.eval.tasks=bits_per_byte,sure", "--config.eval.splits=test"),
    )
    (judged,) = json.loads((root / "run/eval/2/sure.json").read_text())["scores"]
    assert judged["name"] == "test/sure" and 0 <= judged["value"] <= 1
    command("leaderboard.py", "run", "--out=board")
    assert "goldfish" in (root / "board/leaderboard.html").read_text("utf-8")
    plan = command("compare.py", "--config=configs/compare/running_mean.py", "--dry_run")
    assert "running_mean" in plan and "6 runs" in plan
