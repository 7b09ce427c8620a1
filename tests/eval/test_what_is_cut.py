"""What an evaluation cuts is said, and its results are written and printed task by task."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import nats, oracle, successor

from errors import ConfigError
from eval import __main__ as command
from eval import harness
from eval.adapters.lm_harness import LmEvalModel
from eval.likelihood import compute_likelihoods
from eval.progress import log_progress
from eval.task import Score, TaskEntry
from eval.tasks import retrieval
from eval.tasks.sample import TextSample
from training.run.folder import RunFolder
from training.settings import EvalConfig


def requests(*arguments) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=args) for args in arguments]


def test_a_request_beyond_the_window_is_said(caplog):
    model = LmEvalModel(oracle(length=16))
    assert model.generate_until(requests(("abc", {"max_gen_toks": 10}))) == ["defghijklm"]
    assert not caplog.messages
    long = "0123456789" * 3 + "abc"
    texts = model.generate_until(
        requests((long, {"max_gen_toks": 4}), ("ab", {"max_gen_toks": 99}))
    )
    assert texts == ["defg", "cdefghij"]  # the end of the prompt is kept
    said = "\n".join(caplog.messages)
    assert (
        "max_gen_toks 99 does not fit the window of 16 tokens; continuations have at most 8" in said
    )
    assert "1 of 2 prompts do not fit the window of 16 tokens and lose their beginning" in said


def test_a_context_beyond_the_window_loses_its_beginning_and_the_text_stays(caplog):
    ctx, table = oracle(length=8), successor()
    fitting, cut = compute_likelihoods(ctx, [("ab", "cd"), ("0123456789ab", "ce")])
    assert [fitting.nats, cut.nats] == pytest.approx(
        [nats(table, "cd", "b").sum(), nats(table, "ce", "b").sum()], rel=1e-5
    )
    assert caplog.messages == [
        "1 of 2 contexts do not fit the window of 8 tokens and lose their beginning"
    ]
    caplog.clear()
    compute_likelihoods(ctx, [("", "a text that is split over several rows")])
    assert not caplog.messages  # every token is scored


def test_texts_that_are_cut_before_they_are_embedded_are_counted(caplog, monkeypatch):
    ctx = oracle(length=8)
    objective = SimpleNamespace(row_spec=lambda *args: SimpleNamespace(n_texts=2))
    monkeypatch.setattr(retrieval, "embed_rows", lambda ctx, rows: np.zeros((len(rows), 1, 2)))
    retrieval.embed_texts(ctx._replace(objective=objective), ["short", "longer than a row"])
    assert caplog.messages == ["1 of 2 texts do not fit a row of 8 tokens and lose their end"]


def test_the_sample_ends_with_a_row_and_says_so(caplog):
    caplog.set_level("INFO", "isoflop")
    assert not EvalConfig().sample_prompt.endswith(" ")
    (score,) = TextSample()(oracle(length=16))
    assert score.value.startswith("The") and score.weight <= 16 - len("The") - 1
    assert "the sample has 12 tokens, with which the window is full" in caplog.text


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_gen_toks": -3}, "max_gen_toks -3, must be >= 0"),
        ({"temperature": "warm"}, "temperature 'warm', must be of type float"),
        ({"temperature": 1.0, "top_p": 2.0}, "top_p is 2.0, must be > 0 and <= 1"),
    ],
    ids=str,
)
def test_wrong_generation_kwargs_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        LmEvalModel(oracle()).generate_until(requests(("a", kwargs)))


class Steady:
    """Yields one score."""

    version = 1

    def __init__(self, splits=()):
        pass

    def __call__(self, ctx):
        yield Score("steady", 0.5)


class Failing(Steady):
    """Fails after another task has ended."""

    def __call__(self, ctx):
        raise ConfigError("a later task fails")
        yield


def test_each_task_is_written_and_printed_as_it_ends(tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO", "isoflop")
    for name, cls in (("steady", Steady), ("failing", Failing)):
        entry = TaskEntry("", f"{__name__}:{cls.__name__}", is_limited=False)
        monkeypatch.setitem(harness.TASKS, name, entry)
    ctx = oracle()
    ctx.data.fingerprint = "0"
    with pytest.raises(ConfigError, match="a later task fails"):
        harness.evaluate(
            *(ctx, ("steady", "failing"), RunFolder(tmp_path), 3),
            on_task_end=command.print_scores,
        )
    assert json.loads((tmp_path / "eval/3/steady.json").read_text())["scores"][0]["value"] == 0.5
    assert capsys.readouterr().out.split() == ["steady", "0.5000"]
    assert [m for m in caplog.messages if "evaluating" in m] == [
        "evaluating steady (task 1 of 2)",
        "evaluating failing (task 2 of 2)",
    ]


def test_progress_is_said_at_intervals(monkeypatch, caplog):
    caplog.set_level("INFO", "isoflop")
    times = iter(np.arange(0, 60, 4.0))
    monkeypatch.setattr("eval.progress.time.monotonic", lambda: next(times))
    assert list(log_progress("abcdef", 6)) == list("abcdef")
    assert caplog.messages == ["  2 of 6 batches, ETA 0:24", "  5 of 6 batches, ETA 0:05"]
