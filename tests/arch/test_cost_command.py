"""`python -m arch.cost` computes the cost of configs and of published config.json files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from arch.cost import __main__ as command
from errors import ConfigError
from hub import safetensors_io

GOLDENS = Path(__file__).parents[1] / "goldens" / "hf"


def priced(capsys, *argv):
    command.run([*argv, "--json"])
    return json.loads(capsys.readouterr().out)


def test_llama_2_7b_costs_what_its_shapes_say(capsys):
    record = priced(
        capsys, "configs/families/llama2.py:7b", "--vocab_size=32000", "--length=4096",
        "--contexts=4096", "--dtype=bfloat16",
    )  # fmt: skip
    assert record["params"] == 6_738_415_616  # model card of Llama 2
    D, L, F, V, T = 4096, 32, 11008, 32000, 4096
    weights = L * (4 * D * D + 3 * D * F) + V * D  # of matrix products, the head included
    assert record["forward_flops"] == 2 * weights + L * 4 * D * (T + 1) / 2
    [decoding] = record["decoding"]
    assert decoding["state_bytes"] == 2 * L * D * T * 2  # keys and values in two bytes
    assert decoding["flops"] == 2 * weights + L * 4 * D * (T + 1)


def test_the_state_of_a_recurrence_does_not_grow(capsys):
    record = priced(capsys, "configs/mamba2.py:tiny", "--contexts=100,100000")
    short, long = record["decoding"]
    assert short["state_bytes"] == long["state_bytes"] > 0
    assert short["flops"] == pytest.approx(long["flops"], rel=1e-9)


@pytest.mark.parametrize("family", ["mixtral", "t5_v1_1", "bert", "mamba2"])
def test_a_published_config_needs_no_weights(family, capsys, tmp_path):
    shutil.copy(GOLDENS / family / "config.json", tmp_path)
    record = priced(capsys, str(tmp_path / "config.json"))
    tensors = {
        name: entry.shape for name, entry in safetensors_io.read_entries(GOLDENS / family).items()
    }
    of_file = sum(int(np.prod(shape)) for name, shape in tensors.items() if "pooler" not in name)
    assert record["params"] == pytest.approx(of_file, rel=0.02)
    assert priced(capsys, str(GOLDENS / family))["params"] >= record["params"]


def test_tables_show_the_same_numbers(capsys):
    command.run(["configs/dense.py:tiny", "--contexts=128"])
    text = capsys.readouterr().out
    record = priced(capsys, "configs/dense.py:tiny", "--contexts=128")
    assert f"{record['params']:,}" in text
    assert f"{record['decoding'][0]['state_bytes']:,}" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["configs/none.py"], "does not exist"),
        (["configs/dense.py:tiny", "--contexts=0"], "positive integers"),
        (["configs/dense.py:tiny", "--length=-1"], "--length"),
    ],
)
def test_wrong_arguments_are_named(argv, words):
    with pytest.raises(ConfigError, match=words):
        command.run(argv)
