"""The benchmark of accelerators: its table, what it says without one, and how it goes on."""

import json
import sys
from typing import NamedTuple

import pytest

from benchmarks import accelerator
from benchmarks.accelerators import compiled, models
from settings.changes import with_changes
from training.preflight import memory_estimate
from training.settings import Settings

FACTS = {
    "device": {"kind": "NVIDIA H200", "platform": "gpu", "versions": {"jax": "0.12.0"}},
    "peak bfloat16": {"flops": 780e12},
    "copy": {"bytes_per_second": 4.2e12},
}
STEP = {
    "params": 1_080_000_000,
    "batch_size": 8,
    "seq_len": 2048,
    "tokens_per_second": 61_234.0,
    "flops": 390e12,
    "mfu": 0.394,
    "peak_bytes": 90 * 2**30,
    "estimated_bytes": 95 * 2**30,
}


def write(folder, **stages):
    for name, record in stages.items():
        (folder / f"{name}.json").write_text(json.dumps(record))


def test_the_table_shows_what_was_reached_and_what_failed(tmp_path):
    errors = {"ssd": {"worst": 0.2, "is_within": False}, "attention": {"is_within": True}}
    write(
        tmp_path,
        facts=FACTS,
        train={"dense 1B": STEP, "MoE": {"error": "JaxRuntimeError: out of memory"}},
        ops={"ssd": {"forward": 0.001, "backward": 0.0031}},
        errors=errors,
    )
    text = accelerator.format_table(tmp_path)
    assert "780 TFLOP/s" in text and "4.20 TB/s" in text
    assert "| dense 1B | 1.08 B | 8 x 2048 | 61,234 | 39.4% | 50.0% | 90.0, 95.0 GiB |" in text
    assert "out of memory" in text
    assert "| ssd | 1.00 ms | 3.10 ms |" in text
    assert "Outside their tolerance: ssd (2.0e-01)." in text


@pytest.mark.parametrize(
    "facts", [{}, {"device": {"kind": "cpu", "platform": "cpu", "versions": {}}}]
)
def test_a_cpu_is_no_accelerator(tmp_path, facts):
    write(tmp_path, facts=facts)
    assert accelerator.format_table(tmp_path) == accelerator.NOT_RUN


def test_complete_stages_are_not_measured_again(tmp_path, monkeypatch, capsys):
    calls = []

    def run_stage(name, args, seconds):
        calls.append(name)
        return "complete" if name == "facts" else "ran out of time"

    monkeypatch.setattr(accelerator, "run_stage", run_stage)
    monkeypatch.setattr(sys, "argv", ["x", f"--out={tmp_path}", "--only=facts,ops"])
    assert accelerator.main() == 0
    assert accelerator.main() == 0
    assert calls == ["facts", "ops", "ops"]
    monkeypatch.setattr(sys, "argv", ["x", f"--out={tmp_path}", "--minutes=0"])
    accelerator.main()
    assert "no time left" in capsys.readouterr().out


COMPILED = {
    "params": 1_071_435_776,
    "batch_size": 8,
    "seq_len": 2048,
    "remat": "full",
    "optimizer": "lion",
    "fits": True,
    "compiled_bytes": 10 * 2**30,
    "estimated": {"parameters": 8 * 2**30, "activations": 3 * 2**30},
    "memory_bytes": 16 * 2**30,
    "compile_seconds": 71.4,
    "compile_cpu_seconds": 31.4,
    "process_bytes": 3 * 2**30,
    "roofline_tokens_per_second": 12_345.6,
    "roofline_mfu": 0.471,
}


def test_the_table_of_compiled_steps_compares_the_estimate_with_the_compiler():
    record = {"dense 1B, v5e:1": COMPILED, "Mamba-2 1B, h100:1": {"error": "no compiler"}}
    text = compiled.format_table(record)
    assert (
        "| dense 1B, 1.07 B | v5e:1 | 8 x 2048 | full, lion | 10.0, 11.0 GiB (+10%) | "
        "yes, 16.0 GiB | 31 s, 3.0 GiB | 12,346 tokens/s, 47% |"
    ) in text
    assert "| Mamba-2 1B | h100:1 | | | no compiler | | | |" in text
    assert compiled.format_table({}) == "\nNot compiled yet.\n\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"fits": False}, "it does not fit"),
        ({"compile_cpu_seconds": 130.0}, "it compiled in 130.0 s"),
        ({"process_bytes": 7 * 2**30}, "its compilation took 7.0 GiB"),
        ({"compiled_bytes": 8 * 2**30}, "the estimate differs by +38%"),
    ],
)
def test_a_compiled_step_outside_a_limit_is_named(change, said):
    missed = compiled.missed_limits({"dense 1B, v5e:1": COMPILED | change})
    assert missed == ([f"dense 1B, v5e:1: {said}"] if said else [])


def test_recorded_cases_are_not_compiled_again(tmp_path, monkeypatch):
    calls = []

    def run_case(name):
        calls.append(name)
        return {"error": "no time"} if "Mamba" in name else COMPILED

    monkeypatch.setattr(compiled, "run_case", run_case)
    monkeypatch.setattr(sys, "argv", ["x", f"--out={tmp_path / 'c.json'}", "--only=v5e"])
    assert compiled.main() == 1 and len(calls) == len(models.MODELS)
    assert compiled.main() == 1
    assert calls[len(models.MODELS) :] == ["Mamba-2 1B, v5e:1"]
    assert list(json.loads((tmp_path / "c.json").read_text())) == calls[: len(models.MODELS)]


class Program(NamedTuple):
    """What the choice of settings reads of a program."""

    settings: Settings
    mesh: None


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, ("adamw", "none", 8)),
        (8 * 4 + 12, ("adamw", "none", 8)),
        (4 * 4 + 12, ("adamw", "none", 4)),
        (4 * 2 + 12, ("adamw", "dots", 4)),
        (2 * 1 + 12, ("adamw", "full", 2)),
        (8 * 1 + 8, ("adamw", "full", 4)),
        (1 * 1 + 8, ("lion", "full", 1)),
        (1, ("lion", "full", 1)),
    ],
)
def test_a_model_gets_the_largest_batch_that_fits_with_the_least_remat(
    monkeypatch, limit, expected
):
    """With a memory of 12 or 8 for the parameters, and 4, 2 or 1 for a row."""

    def estimate(program):
        s = program.settings
        row = {"none": 4, "dots": 2, "full": 1}[s.model.remat]
        state = {"adamw": 12, "lion": 8}[s.optimizer.name]
        return {"state": state, "activations": row * s.train.batch_size}

    monkeypatch.setattr(memory_estimate, "estimate", estimate)
    monkeypatch.setattr(models, "MEMORY_SHARE", 1.0)
    monkeypatch.setattr(models, "make_program", Program)
    settings = models.model_settings(64, 2, ("attention+mlp",), 32, vocab=512)
    settings = with_changes(settings, {"train.batch_size": 8})
    fitted = models.fit_to_memory(Program(settings, None), limit).settings
    assert (fitted.optimizer.name, fitted.model.remat, fitted.train.batch_size) == expected
