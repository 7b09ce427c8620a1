"""Runs as from the command line, in this process: their flags, their files and their messages.

All runs train one tiny model on a generated text. A test makes many assertions about few runs.
"""

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_runs
import tokenizers as hf
from tiny_runs import STEPS, assert_same_bits, event_names, run, saved_leaves
from tiny_runs import text_flags as flags

from protocol.records import run_record
from settings.run_json import content_hash
from training.checkpoint import restore
from training.run.cli_errors import run_command
from training.run.console import Console
from training.run.folder import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def whole(finished_run, tmp_path):
    """A copy of the folder of a run of six steps without interruption."""
    return Path(shutil.copytree(finished_run, tmp_path / "whole"))


@pytest.fixture(scope="module")
def stopped_run(text, tmp_path_factory):
    """The folder of a run that was stopped after its fourth step; tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    assert run(*flags(text, folder, "--config.debug.inject_fault=sigterm@3")) == 75
    status = RunFolder(folder).read_status()
    assert (status["state"], status["step"]) == ("preempted", 4)
    return folder


@pytest.fixture
def stopped(stopped_run, tmp_path):
    return Path(shutil.copytree(stopped_run, tmp_path / "stopped"))


def test_a_run_leaves_everything_that_is_needed_to_judge_it(whole, text, capsys):
    # covers P6 K20
    record = json.loads((whole / "run.json").read_text())
    assert record["settings"]["model"]["vocab_size"] == 365
    assert record["cost"]["params"] > 0 and record["fingerprints"]["data"]
    rows = RunFolder(whole).read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert len({row["data_hash"] for row in rows}) == 6
    assert rows[0]["learning_rate"] == pytest.approx(3e-3)
    assert rows[-1]["tokens"] == 6 * 8 * 16
    scores = json.loads((whole / "eval" / "6" / "bits_per_byte.json").read_text())
    values = {score["name"]: score["value"] for score in scores["scores"]}
    assert 1 < values["valid/bits_per_byte"] < 12 and 1 < values["test/bits_per_byte"] < 12
    assert RunFolder(whole).read_status()["state"] == "finished"
    # The same command again does nothing and prints that; more steps require --resume=extend.
    assert run(*flags(text, whole)) == 0
    assert "has already finished at step 6; its scores are in eval/6/" in capsys.readouterr().out
    assert run(*flags(text, whole, "--config.train.steps=8")) == 2
    assert "--resume=extend" in capsys.readouterr().err
    assert run(*flags(text, whole, "--config.model.width=32")) == 2
    said = capsys.readouterr().err
    assert "model.width 16 -> 32" in said and "--workdir" in said and len(said.splitlines()) == 1


def test_a_stopped_run_goes_on_to_the_same_bits(whole, stopped, text):
    # covers P1 P3 K2 K21 N22
    assert run(*flags(text, stopped)) == 0
    assert "resume" in event_names(stopped)
    assert_same_bits(whole, stopped, 6)
    rows = [RunFolder(folder).read_metrics() for folder in (whole, stopped)]
    assert [r["data_hash"] for r in rows[0]] == [r["data_hash"] for r in rows[1]]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(text, tmp_path, capsys):
    # covers N1
    assert run(*flags(text, tmp_path, "--config.debug.inject_fault=nan@4")) == 70
    said = capsys.readouterr().err
    assert "step 5: loss nan" in said and "checkpoint 4 is good" in said
    assert "learning_rate" in said
    assert restore.list_steps(tmp_path / "checkpoints") == [2, 4]
    assert "nonfinite" in event_names(tmp_path)


def test_a_run_may_go_back_and_pass_over_bad_data(whole, text, tmp_path, capsys):
    # covers N5
    back = "--config.optimizer.on_nonfinite=rollback"
    bad, stopped = tmp_path / "bad", tmp_path / "stopped"
    assert run(*flags(text, bad, back, "--config.debug.inject_fault=nan@3")) == 0
    events = {event["event"]: event for event in RunFolder(bad).read_events()}
    # The batch of step 4 is bad: training resumes at step 2 with the batch after it.
    assert events["rollback"]["step"] == 2 and events["rollback"]["skipped_batches"] == 2
    rows, good = RunFolder(bad).read_metrics(), RunFolder(whole).read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert [row["data_hash"] for row in rows[:2]] == [row["data_hash"] for row in good[:2]]
    assert not {row["data_hash"] for row in rows[2:]} & {row["data_hash"] for row in good}
    assert "it was rolled back and skipped data" in run_record.read_run(bad, "bad").exclusions[0]
    # A run that is stopped after the rollback and resumed has the same bits and data.
    assert run(*flags(text, stopped, back, "--config.debug.inject_fault=nan@3,sigterm@4")) == 75
    assert run(*flags(text, stopped, back)) == 0
    assert_same_bits(bad, stopped, 6)
    limit = ["--config.optimizer.max_rollbacks=1", "--config.debug.inject_fault=nan@3,nan@5"]
    capsys.readouterr()
    assert run(*flags(text, tmp_path / "lost", back, *limit)) == 70
    assert (
        "rolled back 1 times, as many as optimizer.max_rollbacks allows" in capsys.readouterr().err
    )


def test_a_full_disk_ends_the_run_and_spares_what_was_saved(text, tmp_path, capsys):
    # covers K13
    assert run(*flags(text, tmp_path, "--config.debug.inject_fault=enospc@4")) == 74
    assert "No space left" in capsys.readouterr().err
    assert restore.list_steps(tmp_path / "checkpoints") == [2]
    assert restore.newest_step(tmp_path / "checkpoints") == 2


def test_another_mesh_takes_the_run_over_bit_by_bit(whole, stopped, text):
    # covers K12 D9
    saved = saved_leaves(stopped, 4)
    mesh = ["--config.mesh.data=2", "--config.mesh.model=4"]
    assert run(*flags(text, stopped, *mesh)) == 0
    assert "devices_changed" in event_names(stopped)
    for name, array in saved_leaves(stopped, 4).items():
        np.testing.assert_array_equal(array, saved[name])
    losses = [[row["loss"] for row in RunFolder(f).read_metrics()] for f in (whole, stopped)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_steps_below_the_checkpoint_are_refused(stopped, text, capsys):
    before = RunFolder(stopped).read_metrics()
    assert run(*flags(text, stopped, "--config.train.steps=2")) == 2
    assert "has trained 4 steps, which is beyond train.steps 2" in capsys.readouterr().err
    assert RunFolder(stopped).read_metrics() == before and not (stopped / "eval").exists()


def test_a_beginning_is_read_again_when_the_run_goes_back_to_it(whole, text, tmp_path, capsys):
    """With a checkpoint it is not read at all: its folder may be gone."""
    more = ("--config.optimizer.on_nonfinite=rollback", "--config.debug.inject_fault=nan@2")
    more += (f"--init_from={whole}", "--config.checkpoint.every=0", "--config.eval.tasks=sample")
    assert run(*flags(text, tmp_path / "run", *more)) == 0, capsys.readouterr().err
    assert "rollback" in event_names(tmp_path / "run")
    shutil.rmtree(whole)
    longer = (*more, "--resume=extend", "--config.train.steps=7")
    assert run(*flags(text, tmp_path / "run", *longer)) == 0, capsys.readouterr().err


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_a_terminal_that_is_gone_does_not_end_training():
    console = Console("plain", total_steps=3, file=Broken())
    console.print_row(1, {"loss": 1.0})
    console.print_message("nobody reads this")


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, capfd):
    def talk(_):
        raise BrokenPipeError

    assert run_command(talk, []) == 0 and "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_operations_that_make_a_nan_are_named(text, tmp_path, capfd):
    more = ("--config.debug.debug_nans=true", "--config.debug.inject_fault=nan@2")
    assert run(*flags(text, tmp_path, *more)) == 1
    said = capfd.readouterr().err
    assert "FloatingPointError: invalid value (nan) encountered in" in said


def test_parameters_of_another_run_are_a_beginning(whole, text, tmp_path, capsys):
    # covers K7 K8 K11 K18
    changed = ["--config.optimizer.name=lion", f"--init_from={whole}", "--config.train.steps=2"]
    assert run(*flags(text, tmp_path / "from", *changed)) == 0
    first = RunFolder(tmp_path / "from").read_metrics()[0]["loss"]
    losses = [row["loss"] for row in RunFolder(whole).read_metrics()]
    assert first < losses[0] - 0.3 * (losses[0] - losses[-1])
    files = json.loads((whole / f"checkpoints/{STEPS}/MANIFEST.json").read_text())["files"]
    record = json.loads((tmp_path / "from/run.json").read_text())
    assert record["flags"]["init_from_sha256"] == content_hash(files)
    assert record["data"]["shared_text"].keys() == {"valid", "test"}
    wrong = ["--config.model.width=32", "--config.model.vocab_size=400", f"--init_from={whole}"]
    assert run(*flags(text, tmp_path / "wrong", *wrong)) == 66
    said = capsys.readouterr().err
    assert "model.stack.blocks.0.mixer.w_q float32[1,16,16] (expected float32[1,32,32])" in said
    assert "model.embed.table float32[384,16] (expected float32[512,32])" in said


def test_data_that_changed_is_refused(whole, text, tmp_path, capsys):
    # covers D6 D7 D11
    other = tmp_path / "other.txt"
    other.write_text((text / "text.txt").read_text().replace("fox", "cat"))
    changed = flags(text, whole, f"--config.data.path={other}")
    assert run(*changed) == 2
    assert "data.path" in capsys.readouterr().err
    # The same path, as if the text in it had been another when the run was trained.
    record = json.loads((whole / "run.json").read_text())
    record["settings"]["data"]["path"] = str(other)
    record.pop("sealed", None), record.pop("sha256", None)
    (whole / "run.json").write_text(json.dumps(record))
    assert run(*changed) == 65
    assert "other data" in capsys.readouterr().err
    assert run(*changed, "--config.seed=1") == 2


def test_a_dry_run_says_what_would_be(text, tmp_path, capsys):
    assert run(*flags(text, tmp_path / "dry", "--dry_run")) == 0
    said = capsys.readouterr().out
    for words in (
        "train.steps",
        "flag",
        "attention.projections",
        "training, 768 tokens",
        "gradients",
        "before a document",
        "'<|bos|>' (257)",
    ):
        assert words in said
    assert not (tmp_path / "dry").exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(whole, text, tmp_path, capsys):
    new, file, wide = tmp_path / "new", tmp_path / "file", "--config.model.width=32"
    file.write_text("")
    cases = [
        (whole, [wide], "model.width 16 -> 32", 2),
        (whole, ["--config.train.steps=8"], "use --resume=extend", 2),
        (whole, [f"--init_from={text}"], "started without --init_from", 2),
        (file / "run", [], f"{file}: it is no folder", 74),
        (new, [wide, f"--init_from={whole}"], "(expected float32[1,32,32])", 66),
        (new, [f"--init_from={text}"], "config.json", 66),
    ]
    for folder, more, said, code in cases:
        assert run(*flags(text, folder, "--dry_run", *more)) == code, said
        assert said in capsys.readouterr().err
    assert run(*flags(text, whole, "--dry_run")) == 0
    assert run(*flags(text, new, "--dry_run", f"--init_from={whole}")) == 0
    assert not new.exists()


@pytest.mark.parametrize(
    ("flag", "said", "code"),
    [
        ("--config.model.widht=3", "did you mean", 2),
        ("--config.train.batch_size=12", "train.batch_size 12", 2),
        ("--config.mesh.model=3", "does not fill 8 devices", 2),
        ("--config.model.vocab_size=100", "below the tokenizer's 365", 2),
        (
            "--config.optimizer.warmup=6",
            "warmup 6 must be smaller than train.steps 6; largest: 5",
            2,
        ),
        (
            "--config.model.positions.max_length=4 --config.model.positions.learned=true",
            "longer",
            2,
        ),
        ("--config.eval.tasks=bit_per_byte", "did you mean 'bits_per_byte'", 2),
        ("--config.debug.inject_fault=boom@3", "debug.inject_fault", 2),
        ("--config.data.path=/nowhere/at/all.txt", "/nowhere/at/all.txt", 65),
        ("--config.train.batch_size=8000", "tokens", 65),
        ("--config.seed=4294967296", "config.seed is 4294967296, must be >= 0 and <= 4,294", 2),
        ("--init_from=/nowhere", "/nowhere", 66),
    ],
)
def test_mistakes_are_answered_in_one_line_before_anything_compiles(
    flag, said, code, text, tmp_path, capsys
):
    # covers C1 C9 C10 C11 C12 D3 N19
    assert run(*flags(text, tmp_path, *flag.split())) == code
    error = capsys.readouterr().err.splitlines()
    assert said in error[-1] and "Traceback" not in "".join(error)


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes",  # of a GPU
        "INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes.",  # of a CPU
    ],
)
def test_running_out_of_device_memory_is_explained(text, capsys):
    # covers P8
    def command(argv):
        raise jax.errors.JaxRuntimeError(text)

    assert run_command(command, []) == 77
    said = capsys.readouterr().err
    assert "grad_accum_steps" in said and "remat" in said and "--dry_run" in said


def test_running_out_of_host_memory_is_one_line(capsys):
    assert run_command(lambda argv: np.empty(1 << 58), []) == 77
    said = capsys.readouterr().err
    assert "Unable to allocate" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_corrupt_compile_cache_costs_only_time(text, tmp_path, monkeypatch):
    # covers P11
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)  # several CPU devices have no cache
    cache = tmp_path / "programs"
    more = [f"--config.train.compile_cache={cache}", "--config.train.steps=2"]
    other = [f"--config.train.compile_cache={tmp_path / 'other'}", "--config.train.steps=1"]
    threshold = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # keep all, on any machine
    try:
        assert run(*flags(text, tmp_path / "before", *other)) == 0  # an earlier run of this process
        assert run(*flags(text, tmp_path / "first", *more)) == 0
        kept = [path for path in cache.rglob("*") if path.is_file()]
        assert kept
        for path in kept:
            path.write_bytes(b"not a program")
        jax.clear_caches()
        assert run(*flags(text, tmp_path / "second", *more)) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", threshold)
    first, second = (RunFolder(tmp_path / name).read_metrics() for name in ("first", "second"))
    assert [row["loss"] for row in first] == [row["loss"] for row in second]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(whole, text, tmp_path):
    """kill -9 while a checkpoint is written, and between steps; then the same command resumes.

    The other processes inherit XLA_FLAGS, because other flags may change the last bits.
    """
    # covers K1 K2 K3 P9
    for fault in ("kill@save:4", "kill@5"):
        folder = tmp_path / fault.replace("@", "-").replace(":", "-")
        command = [sys.executable, "train.py", *flags(text, folder)]
        killed = subprocess.run([*command, f"--config.debug.inject_fault={fault}"], cwd=ROOT)
        assert killed.returncode == -signal.SIGKILL
        assert subprocess.run(command, cwd=ROOT).returncode == 0
        assert_same_bits(whole, folder, 6)
        assert not list((folder / "checkpoints").glob("*.writing"))


def test_a_dry_run_says_how_chats_are_read(tmp_path, capsys):
    reply = {"role": "assistant", "content": "Hi"}
    chats = [{"messages": [{"role": "user", "content": f"Hello {i}"}, reply]} for i in range(60)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    settings = {"path": tmp_path / "chats.jsonl", "chat_template": "chatml", "max_shared": 1.0}
    settings |= {"cache": tmp_path / "cache"}
    named = {f"data.{key}": value for key, value in settings.items()}
    assert run(*tiny_runs.flags(named, tmp_path / "dry", "--dry_run")) == 0
    said = capsys.readouterr().out
    for words in ("chatml", "the replies of the assistant", '"<|im_end|>", text, no special token'):
        assert words in " ".join(said.split())


def test_a_run_with_a_lossy_tokenizer_says_and_records_it(text, tmp_path, caplog):
    words = ["[UNK]", "[BOS]", "[EOS]", *tiny_runs.WORDS[1:]]  # "the" is unknown
    made = hf.Tokenizer(hf.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(words[:3])
    made.save(str(tmp_path / "tokenizer.json"))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("bos", "eos", "unk")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    changes = [f"--config.data.tokenizer={tmp_path}", f"--config.data.cache={tmp_path / 'cache'}"]
    changes += ["--config.train.steps=1", "--config.eval.tasks=('bits_per_byte',)"]
    assert run(*tiny_runs.text_flags(text, tmp_path / "run", *changes)) == 0
    assert caplog.text.count("The tokenizer is lossy: ") == 1
    shares = json.loads((tmp_path / "run/run.json").read_text())["data"]["decodes_back"]
    assert set(shares) == {"train", "valid", "test"} and 0.8 < min(shares.values()) < 0.99
