"""The benchmark of accelerators: its table, what it says without one, and how it goes on."""

import json
import sys

import pytest

from benchmarks import accelerator

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
