"""Compares bits per byte with a sum by hand, and generation with full forward passes."""

import math
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from arch import SequenceInfo
from errors import ConfigError, DataError, DiskError
from eval import __main__ as command
from eval import harness
from eval.generate import Sampling, generate, sample_token
from eval.harness import DEFAULT_TASKS, TASKS, resolve_tasks
from eval.task import EvalContext
from eval.tasks.bits_per_byte import BitsPerByte, bits_per_byte, sum_terms
from eval.tasks.inference import measure_speed
from eval.tasks.loss_by_position import LossByPosition
from hub.families import FAMILIES
from objectives import OBJECTIVES, CausalLM, DummyTokenizer, Trainable
from training import mesh as meshes
from training.run.folder import RunFolder
from training.settings import EvalConfig, Settings, TrainConfig


def test_bits_per_byte_counts_every_token_and_byte_once(monkeypatch):
    """A store of uneven documents, against log-probabilities of whole rows in numpy."""
    from data.loader import eval_batches
    from data.packing import PackedRows

    store = FakeStore([5, 0, 9, 1, 3])
    model = tiny.model(tiny.config(depth=1))
    settings = Settings(train=TrainConfig(seq_len=6), eval=EvalConfig(batch_size=2))
    mesh = meshes.make_mesh(meshes.MeshConfig())
    placed = jax.device_put(model, meshes.param_shardings(mesh, model))
    data = types.SimpleNamespace(tokenizer=DummyTokenizer())
    ctx = EvalContext(Trainable(placed), mesh, settings, CausalLM(), data)
    nats, predicted = sum_terms(ctx, store)["nats"]
    assert predicted == sum(n + 1 for n in (5, 0, 9, 1, 3))
    expected, batches = 0.0, eval_batches(PackedRows(store, 6, 1), 2, CausalLM().make_row)

    @jax.jit
    def forward(model, batch):
        return model.logits(model(batch["tokens"], SequenceInfo.from_batch(batch, "causal"))[0])

    for index in range(len(batches)):
        batch = batches[index]
        logits = np.asarray(forward(model, batch), np.float64)[..., : tiny.VOCAB]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        target_log_probs = np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
        expected -= (target_log_probs * batch["weights"]).sum()
    assert nats == pytest.approx(expected, rel=1e-5)
    assert bits_per_byte(nats, 100) == pytest.approx(nats / math.log(2) / 100)


class FakeStore:
    """Documents of given lengths; 100 bytes of text."""

    text_bytes, bos, eos, folder, vocab = 100, 38, 39, "fake", tiny.VOCAB

    def __init__(self, lengths):
        self.lengths = np.array(lengths)
        self._tokens = np.random.default_rng(0).integers(0, 38, sum(lengths)).astype(np.uint16)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    def slice(self, document, start, stop):
        at = self._starts[document]
        return self._tokens[at + start : at + stop]

    def weights(self, document, start, stop):
        return None


def test_greedy_continuations_are_those_of_the_whole_forward_pass():
    """Prompts of unequal length, in one batch and each alone."""
    model = tiny.model(tiny.config(depth=2))
    prompts = [np.array([1, 2, 3, 4]), np.array([7])]
    key, greedy = jax.random.key(0), Sampling(temperature=0.0)
    together = generate(model, prompts, 5, key=key, sampling=greedy)
    forward = jax.jit(lambda model, ids: model.logits(model(ids, SequenceInfo.unpacked(1, 9))[0]))
    for prompt, continuation in zip(prompts, together, strict=True):
        row = np.zeros((1, 9), np.int32)  # a causal model does not see what follows
        row[0, : len(prompt)] = prompt
        for length in range(len(prompt), len(prompt) + 5):
            row[0, length] = np.asarray(forward(model, row))[0, length - 1].argmax()
        np.testing.assert_array_equal(continuation, row[0, len(prompt) : len(prompt) + 5])


def test_generation_stops_and_samples_from_the_likeliest():
    model = tiny.model(tiny.config(depth=1))
    (full,) = generate(model, [np.array([1])], 6, key=jax.random.key(0))
    (cut,) = generate(model, [np.array([1])], 6, key=jax.random.key(0), stop_tokens=int(full[2]))
    np.testing.assert_array_equal(cut, full[: list(full).index(full[2])])
    logits = jnp.tile(jnp.array([0.0, 3.0, 2.0, 1.0]), (2000, 1))
    tokens = np.asarray(sample_token(logits, jax.random.key(1), Sampling(temperature=0.5, top_k=2)))
    assert set(tokens) == {1, 2}
    share = 1 / (1 + math.exp(-2))  # of token 1 against token 2: their logits differ by 2
    assert (tokens == 1).mean() == pytest.approx(share, abs=0.03)


def test_sampling_keeps_what_it_is_told_to():
    logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (4000, 1))

    def check(expected, **options):
        tokens = np.asarray(sample_token(logits, jax.random.key(2), Sampling(**options)))
        shares = [(tokens == i).mean() for i in range(4)]
        np.testing.assert_allclose(shares, np.array(expected) / sum(expected), atol=0.03)
        assert all((share == 0) == (e == 0) for share, e in zip(shares, expected, strict=True))

    check([0.5, 0.3, 0.15, 0.05])
    check([0.5, 0.3, 0, 0], top_p=0.6)  # .5 alone is below .6
    check([1, 0, 0, 0], top_p=0.01)
    check([0.5, 0.3, 0, 0], min_p=0.5)
    check([0.5, 0.3, 0.15, 0], min_p=0.2, top_k=3)


def test_loss_by_place_adds_up_to_the_loss():
    store = FakeStore([5, 40, 9, 70, 3])
    model = tiny.model(tiny.config("mamba1", depth=1))
    settings = Settings(
        model=model.config, train=TrainConfig(seq_len=8), eval=EvalConfig(batch_size=2)
    )
    mesh = meshes.make_mesh(meshes.MeshConfig())
    placed = jax.device_put(model, meshes.param_shardings(mesh, model))
    data = types.SimpleNamespace(tokenizer=DummyTokenizer(), test=store)
    ctx = EvalContext(Trainable(placed), mesh, settings, CausalLM(), data)
    scores = {score.name: score for score in LossByPosition()(ctx)}
    nats, predicted = sum_terms(ctx, store)["nats"]
    assert scores["test/bits_per_byte@1x"].value == pytest.approx(nats / math.log(2) / 100)
    longest = [scores[f"test/nats@{n}"] for n in (0, 2, 4, 8, 16, 32)]
    total = sum(score.value * score.weight for score in longest)
    bits = total / math.log(2) / 100
    assert scores["test/bits_per_byte@8x"].value == pytest.approx(bits, rel=1e-5)


def test_inference_counts_the_state_that_is_there():
    model = tiny.model(tiny.config("attention", depth=1))
    scores = {score.name: score.value for score in measure_speed(model, 24)}
    heads = 4 * 4 * 2 * 4  # heads x width x (keys and values) x bytes
    assert scores["state_bytes_estimate@24"] == heads * (24 + 16)
    assert 1 < scores["state_bytes@24"] / scores["state_bytes_estimate@24"] < 1.3  # and its mask
    assert scores["prefill_tokens_per_second@24"] > 0 and scores["decode_ms_per_token@24"] > 0


def test_help_lists_the_flags_and_every_task(capsys):
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit, match="0"):
            command.run([flag])
        said = capsys.readouterr().out
        assert "usage: python -m eval [-h] --run DIR" in said and "--step " in said
        assert all(re.search(rf"\b{name}\b", said) for name in TASKS)


def test_a_run_that_cannot_be_written_is_refused_before_it_is_evaluated(tmp_path, monkeypatch):
    (tmp_path / "eval").touch()
    monkeypatch.setattr(harness, "_run_task", lambda *_: pytest.fail("it was evaluated"))
    ctx = types.SimpleNamespace(settings=Settings())
    with pytest.raises(DiskError, match="eval/3: Not a directory"):
        harness.evaluate(ctx, ["sample"], RunFolder(tmp_path), 3)


def test_a_negative_step_is_refused():
    with pytest.raises(ConfigError, match="--step is -7, must be >= 0"):
        command.parse_args(["--run=x", "--step=-7"])


def test_tasks_by_name():
    # covers C14
    assert set(DEFAULT_TASKS) == set(OBJECTIVES)
    for name, task in TASKS.items():
        assert task.objective in ("", *OBJECTIVES) and task().version >= 1, name
    for objective, tasks in DEFAULT_TASKS.items():
        assert resolve_tasks(Settings(objective=objective)) == tasks
        assert all(TASKS[name].objective == objective for name in tasks)
    with pytest.raises(ConfigError, match="'sampel'; did you mean 'sample'"):
        resolve_tasks(Settings(eval=EvalConfig(tasks=("sampel",))))
    with pytest.raises(
        ConfigError,
        match="'bits_per_byte' evaluates the objective causal_lm, but the run has masked_lm",
    ):
        resolve_tasks(Settings(objective="masked_lm", eval=EvalConfig(tasks=("bits_per_byte",))))


@pytest.mark.slow
def test_mypy_accepts_what_lazy_tables_name(tmp_path):
    """The tables name classes as text, so mypy checks a file that imports them."""
    named = [(entry.path, "type[Task]") for entry in TASKS.values()]
    named += [(path, "HfFamily") for path in FAMILIES.paths.values()]
    lines = ["from eval.task import Task", "from hub.family import HfFamily"]
    for i, (path, kind) in enumerate(dict.fromkeys(named)):
        module, _, name = path.partition(":")
        lines += [f"from {module} import {name} as x{i}", f"y{i}: {kind} = x{i}"]
    wrong = "from eval.task import Score\nz: type[Task] = Score"
    for text, code in (("\n".join(lines), 0), ("\n".join([*lines, wrong]), 1)):
        (tmp_path / "check.py").write_text(text)
        config = ("--config-file", "pyproject.toml", "--no-incremental")
        process = subprocess.run(
            [sys.executable, "-m", "mypy", *config, str(tmp_path / "check.py")],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert process.returncode == code, process.stdout


def test_a_split_in_which_no_token_has_a_weight_is_refused(monkeypatch):
    totals = {"nats": (0.0, 0.0)}
    monkeypatch.setattr("eval.tasks.bits_per_byte.sum_terms", lambda ctx, store: totals)
    ctx = types.SimpleNamespace(data=types.SimpleNamespace(valid=None, test=None))
    with pytest.raises(DataError, match="no token of the valid split has a loss weight"):
        list(BitsPerByte()(ctx))
