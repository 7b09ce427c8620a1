"""Follows the recipes to the letter: writes their files, adds their lines, and runs them."""

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
from errors import ConfigError
from objectives import OBJECTIVES, CausalLM

ROOT = Path(__file__).parents[2]
PAGES = ("docs/mixer.md", "docs/objective.md", "docs/task.md", "CONTRIBUTING.md")
WITH_FILES = PAGES[:-1]  # pages that have their reader write whole files
FILES = {  # The files that a page has its reader write, by their first words.
    '"""Running mean': "arch/mixers/running_mean.py",
    '"""A running mean': "configs/compare/running_mean.py",
    '"""Goldfish loss': "objectives/goldfish.py",
    '"""The share of tokens': "eval/tasks/sure.py",
}


def blocks(page, language):
    """Returns (path named in the line above or "", text) of the code blocks in a language."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"^(?:.*`(\S+)`.*\n\n)?```{language}\n((?:.*\n)*?)```", text, re.M)


def written(page):
    """Yields (path, source) of the files that a page has its reader write."""
    for _, source in blocks(page, "python"):
        (path,) = (path for start, path in FILES.items() if source.startswith(start))
        assert f"`{path}`" in (ROOT / page).read_text("utf-8")
        yield path, source


def edited(text, diff):
    """Returns `text` after a diff whose lines of context name its positions, in their order."""
    lines, position = text.splitlines(), 0
    for mark, line in ((row[:1], row[1:]) for row in diff.splitlines()):
        if mark == "+":
            lines.insert(position, line)
            position += 1
        else:
            position = lines.index(line, position) + (mark == " ")
            if mark == "-":
                del lines[position]
    return "\n".join(lines) + "\n"


def module(monkeypatch, page, path):
    """Imports a file of a page as a module."""
    name = path.removesuffix(".py").replace("/", ".")
    imported = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, imported)
    exec(compile(dict(written(page))[path], path, "exec"), imported.__dict__)
    return imported


@pytest.fixture
def running_mean(monkeypatch):
    recipe = module(monkeypatch, "docs/mixer.md", "arch/mixers/running_mean.py")
    monkeypatch.setitem(arch_config.MIXERS, "running_mean", recipe.RunningMean)
    yield "running_mean"
    tiny.model.cache_clear()


@pytest.fixture
def goldfish(monkeypatch):
    recipe = module(monkeypatch, "docs/objective.md", "objectives/goldfish.py")
    monkeypatch.setitem(OBJECTIVES, "goldfish", recipe.Goldfish)
    return recipe.Goldfish


@pytest.mark.slow
def test_the_mixer_keeps_every_contract(running_mean):
    changes = tiny.BIDIRECTIONAL
    test_contracts.test_views(running_mean, changes)
    test_contracts.test_packed_documents_are_as_if_alone_and_padding_changes_nothing(
        running_mean, changes
    )
    test_contracts.test_prefill_and_steps_are_the_parallel_form(running_mean, changes)
    test_contracts.test_precision(running_mean, changes)
    test_contracts.test_cost_counts_every_leaf_and_every_multiply_add(running_mean, changes)
    test_contracts.test_values_and_gradients_are_finite_and_every_parameter_gets_one(
        running_mean, changes
    )
    for length in (0, 1):
        test_contracts.test_short_rows_have_finite_values_and_gradients(
            running_mean, changes, length
        )
    test_contracts.test_a_scan_that_rematerialises_on_a_mesh_is_the_unrolled_model_on_one_device(
        running_mean, "mlp"
    )
    for sizes in test_contracts.MESHES:
        test_contracts.test_every_mesh_computes_what_one_device_does(running_mean, "mlp", sizes)


def test_the_mixer_learns(running_mean):
    test_objectives.test_the_loss_falls_below_the_unigram("masked_lm", running_mean)


def test_the_objective_leaves_out_a_share_of_the_targets(goldfish):
    objective, slices = goldfish(drop_rate=0.3), [np.arange(1500), np.arange(400)]
    row_fns = [
        o.make_row_fn(tiny.config(), 2000, test_objectives.Words()) for o in (objective, CausalLM())
    ]
    row, plain = (make_row(slices, 2000, np.random.default_rng(0)) for make_row in row_fns)
    assert row.keys() == plain.keys()
    assert all((row[name] == plain[name]).all() for name in row.keys() - {"weights"})
    is_target = plain["weights"] == 1
    assert not row["weights"][~is_target].any()
    assert row["weights"][is_target].mean() == pytest.approx(0.7, abs=0.05)
    assert goldfish(drop_rate=0.3).for_eval() == CausalLM()


@pytest.mark.slow
def test_the_objective_keeps_what_all_objectives_do(goldfish):
    test_objectives.test_the_loss_falls_below_the_unigram("goldfish", "attention")
    test_objectives.test_microbatches_add_up_to_the_batch("goldfish")
    test_objectives.test_a_batch_without_a_target_is_no_nan("goldfish")


def test_every_diff_of_a_page_fits_its_file():
    for page in PAGES:
        diffs = blocks(page, "diff")
        assert diffs
        for path, diff in diffs:
            before = (ROOT / path).read_text("utf-8")
            added = [row[1:] for row in diff.splitlines() if row[0] == "+"]
            after = edited(before, diff)
            assert all(line in after.splitlines() for line in added)
            compile(after, path, "exec")


def with_diff(monkeypatch, path):
    """Imports a file of the project after the diff that CONTRIBUTING.md has for it."""
    ((_, diff),) = (block for block in blocks("CONTRIBUTING.md", "diff") if block[0] == path)
    imported = types.ModuleType(f"edited_{Path(path).stem}")
    monkeypatch.setitem(sys.modules, imported.__name__, imported)
    source = edited((ROOT / path).read_text("utf-8"), diff)
    exec(compile(source, path, "exec"), imported.__dict__)
    return imported


def test_the_optimizer_follows_the_sign_of_the_momentum(monkeypatch):
    optimizer = with_diff(monkeypatch, "training/optimizer.py")
    cfg = optimizer.OptimizerConfig(name="signum", schedule="constant", learning_rate=0.5)
    parameters = {"w": np.array([1.0, 2.0]), "scale": np.array([1.0, 2.0])}
    gradients = {name: np.array([3.0, -0.1]) for name in parameters}
    roles = {"w": "matrix", "scale": "vector"}
    tx = optimizer.make_optimizer(cfg, 10, {"w": True, "scale": False}, roles)
    updates = tx.update(gradients, tx.init(parameters), parameters)[0]
    np.testing.assert_allclose(updates["scale"], [-0.5, 0.5])
    np.testing.assert_allclose(updates["w"], [-0.5 - 0.05, 0.5 - 0.1], rtol=1e-6)
    with pytest.raises(ConfigError, match="did you mean 'signum'"):
        optimizer.OptimizerConfig(name="signun")


def test_the_tracker_gets_the_metrics_of_each_step(monkeypatch, tmp_path):
    trackers = with_diff(monkeypatch, "training/run/trackers.py")
    trackers.check_installed(["csv"])
    tracker = trackers.TRACKERS["csv"][0](trackers.RunInfo(tmp_path, "abc", {}))
    tracker.write(3, {"loss": 1.5, "lr": 0.1})
    assert (tmp_path / "metrics.csv").read_text() == "3,loss,1.5\n3,lr,0.1\n"
    tracker.close()


@pytest.mark.slow
def test_a_reader_who_does_all_of_it_sees_it_on_the_board(tmp_path):
    """Uses every recipe in one run of a copy of the project."""
    root = tmp_path / "isoflop"
    ignored = shutil.ignore_patterns(".*", "runs", "docs", "notebooks", "__pycache__")
    shutil.copytree(ROOT, root, ignore=ignored)
    for page in PAGES:
        for path, source in written(page) if page in WITH_FILES else ():
            (root / path).write_text(source, "utf-8")
        for path, diff in blocks(page, "diff"):
            (root / path).write_text(edited((root / path).read_text("utf-8"), diff), "utf-8")

    def command(*args):
        process = subprocess.run(
            [sys.executable, *args], cwd=root, env=env, capture_output=True, text=True, timeout=600
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    env = os.environ | {"XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(root)}
    for split in ("train", "valid", "test"):
        (root / f"{split}.txt").write_text(f"The text of {split} is short. " * 40)
    small = ["train.steps=2", "train.batch_size=2", "train.seq_len=64", "data.source=text"]
    small += ["data.path=train.txt", "data.valid_path=valid.txt", "data.test_path=test.txt"]
    command(
        "train.py",
        *("--config=configs/dense.py:tiny", "--workdir=run", "--config.objective=goldfish"),
        *("--config.optimizer.name=signum", "--config.log.trackers=csv", "--config.log.every=1"),
        *(f"--config.{setting}" for setting in small),
        "--config.data.cache=cache",
        *("--config.model.width=32", "--config.model.depth=2", "--config.optimizer.warmup=1"),
        "--config.model.layers=('running_mean+mlp', 'attention+moe')",
        *("--config.eval.tasks=bits_per_byte,sure", "--config.eval.splits=test"),
    )
    assert json.loads((root / "run/run.json").read_text())["settings"]["optimizer"]["name"] == (
        "signum"
    )
    rows = [line.split(",") for line in (root / "run/metrics.csv").read_text().splitlines()]
    assert [step for step, name, _ in rows if name == "loss"] == ["1", "2"]
    (score,) = json.loads((root / "run/eval/2/sure.json").read_text())["scores"]
    assert score["name"] == "test/sure" and 0 <= score["value"] <= 1
    command("leaderboard.py", "run", "--out=board")
    assert "goldfish" in (root / "board/leaderboard.html").read_text("utf-8")
    plan = command("compare.py", "--config=configs/compare/running_mean.py", "--dry_run")
    assert "running_mean" in plan and "6 runs" in plan
