"""Tests imports of checkpoints as runs and exports of runs, which must not lose anything."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import hub_goldens as goldens
import jax
import numpy as np
import pytest
import tiny

import hub
from arch.layers.norms import NormConfig
from arch.layers.rope import RopeConfig
from arch.mixers.attention import AttentionConfig
from arch.mixers.combined.bidirectional import BidirectionalConfig
from data.settings import DataConfig
from data.tokenizers import ByteTokenizer, train_bpe
from errors import CheckpointError, ConfigError, DataError
from eval.load_run import load_run
from hub import __main__ as command
from hub import run as runs
from hub import safetensors_io
from hub.families.lookup import find_export_family
from settings.tree import freeze, from_json
from storage import scratch
from storage.remote import RemoteFolder
from training import mesh as meshes
from training.program import make_program
from training.settings import Settings, resolve

CONFIG = tiny.config(vocab_size=365, depth=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Creates a published folder, the run imported from it, and the export of the run."""
    root = tmp_path_factory.mktemp("runs")
    hub.save(tiny.model(CONFIG), CONFIG, root / "first")
    text = root / "text.txt"
    text.write_text("\n\n".join(f"some words of text {n}" for n in range(200)))
    source = {"source": "text", "path": str(text), "document_separator": "\n\n"}
    runs.import_as_run(
        str(root / "first"), root / "run", DataConfig(**source, cache=str(root / "cache"))
    )
    runs.export_run(root / "run", root / "second")
    return root


def test_a_round_trip_through_a_run_is_exact(root):
    first, second = (safetensors_io.read_entries(root / name) for name in ("first", "second"))
    assert set(first) == set(second)
    for name in first:
        assert (
            safetensors_io.read_tensor(first[name]).tobytes()
            == safetensors_io.read_tensor(second[name]).tobytes()
        )
    keys = json.loads((root / "second" / "config.json").read_text())
    assert (keys["model_type"], keys["eos_token_id"]) == ("llama", 258)
    assert keys["max_position_embeddings"] == runs.MAX_IMPORT_LENGTH
    ids = json.loads((root / "second" / "generation_config.json").read_text())
    assert ids == {"bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256}
    card = (root / "second" / "README.md").read_text()
    for word in ("LlamaForCausalLM", "sha256", "| seed | 0 |", "0 steps"):
        assert word in card


def test_an_import_into_a_store_is_read_on_another_machine(root, tmp_path, monkeypatch):
    """With its tokenizer, which the run finds at a URL."""
    shutil.copytree(root / "first", tmp_path / "published")
    tokenizer = train_bpe(["some words of text"], 256)
    tokenizer.save(tmp_path / "published")
    url = f"memory://bucket{tmp_path}"
    source = {"source": "text", "path": str(root / "text.txt"), "document_separator": "\n\n"}
    data = DataConfig(**source, cache=str(root / "cache"))
    monkeypatch.setattr(scratch, "ROOT", str(tmp_path / "here"))
    runs.import_as_run(str(tmp_path / "published"), f"{url}/run", data)
    shutil.rmtree(tmp_path / "here")
    monkeypatch.setattr(scratch, "ROOT", str(tmp_path / "there"))
    subject, _, step = load_run(f"{url}/run")
    assert step == 0 and subject.settings.data.tokenizer == f"{url}/run/tokenizer"
    assert subject.data.tokenizer.fingerprint == tokenizer.fingerprint
    runs.export_run(f"{url}/run", f"{url}/export")
    assert {"config.json", "tokenizer.json"} <= set(RemoteFolder(f"{url}/export").list())


def test_evaluation_and_settings_read_the_run(root):
    subject, _, step = load_run(root / "run")
    assert step == 0
    leaves = jax.tree.leaves(tiny.model(CONFIG))
    table = np.asarray(subject.trainable.model.embed.table[...])
    np.testing.assert_array_equal(table, leaves[0][:365])
    with pytest.raises(ConfigError, match="has a run already"):
        runs.import_as_run(str(root / "first"), root / "run", subject.settings.data)


def test_a_run_begins_with_a_published_folder(root):
    """The run has another tiling of the pattern, and an embedding padded to a multiple of 128."""
    record = json.loads((root / "run" / "run.json").read_text())
    settings = from_json(Settings, record["settings"])
    model = dataclasses.replace(
        settings.model, first_layers=("attention+mlp",), vocab_multiple=128, remat="full"
    )
    settings = dataclasses.replace(settings, model=model)
    program = make_program(settings, meshes.make_mesh(meshes.MeshConfig()))
    fingerprint = ByteTokenizer().fingerprint
    trainable = runs.load_params(str(root / "second"), program, fingerprint)
    assert jax.tree.structure(trainable) == jax.tree.structure(program.abstract_state.trainable)
    old = tiny.model(CONFIG)
    np.testing.assert_array_equal(trainable.model.embed.table[:365], old.embed.table[:365])
    assert trainable.model.embed.table.shape == (384, 16)
    first = trainable.model.stack.first[0].mixer.w_q[...]
    np.testing.assert_array_equal(first, old.stack.blocks[0].mixer.w_q[0])
    other = dataclasses.replace(
        settings, model=dataclasses.replace(model, norm=NormConfig(eps=1e-3))
    )
    program = program._replace(settings=other)
    with pytest.raises(ConfigError, match=r"norm\.eps 0\.001, not 1e-06"):
        runs.load_params(str(root / "second"), program, fingerprint)
    with pytest.raises(ConfigError, match=r"norm\.eps 0\.001, not 1e-06"):
        runs.check_params(str(root / "second"), program, fingerprint)
    with_tokenizer = Path(shutil.copytree(root / "second", root / "third"))
    ByteTokenizer().save(with_tokenizer)
    program = program._replace(settings=settings)
    with pytest.raises(DataError, match="another tokenizer .* set data.tokenizer"):
        runs.load_params(str(with_tokenizer), program, "0" * 64)
    runs.check_params(str(with_tokenizer), program, fingerprint)


@pytest.mark.parametrize(
    ("mixer", "channel", "changes", "kind"),
    [
        ("attention", "mlp", {}, "llama"),
        ("local_attention", "mlp", {}, "mistral"),
        ("attention", "moe", {}, "mixtral"),
        ("mamba2", "none", {"bidirectional": BidirectionalConfig("shared")}, "mamba2"),
        (
            *("mamba2", "mlp"),
            {
                "layers": ("mamba2+mlp",) * 3 + ("attention+mlp",),
                "attention": AttentionConfig(heads=2, rope=RopeConfig(rotary_dim=4)),
                "depth": 5,
            },
            "bamba",
        ),
    ],
)
def test_what_is_trained_here_is_exported_as_its_nearest_family(mixer, channel, changes, kind):
    family, _ = find_export_family(tiny.config(mixer, channel, **changes))
    assert family.model_type == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("dense", "llama"), ("moe", "mixtral"), ("mamba1", "mamba"), ("mamba2", "mamba2")],
        ("hybrid", "bamba"),
    ],
)
def test_ready_configs_are_exported_as_they_are(name, kind):
    settings = freeze(Settings, importlib.import_module(f"configs.{name}").get_config("tiny"))
    family, keys = find_export_family(resolve(settings, 365).model, views=["causal"])
    assert family.model_type == kind
    if name == "hybrid":  # the reference reads other fractions than a half only there
        assert "partial_rotary_factor" not in keys
        assert keys["rope_parameters"]["partial_rotary_factor"] == 1.0


def test_a_family_reads_rows_as_the_run_did():
    """A bidirectional model is not a llama, which is causal, though the weights fit."""
    with pytest.raises(
        ConfigError, match="llama would differ in the view bidirectional, not causal"
    ):
        find_export_family(tiny.config(), "llama", views=["bidirectional"])
    with pytest.raises(ConfigError, match="no family computes"):
        find_export_family(tiny.config(), views=["prefix"])
    assert find_export_family(tiny.config(), views=["causal", "prefix"])[0].model_type == "llama"


def test_what_a_run_adds_leaves_the_family_its_own_words(tmp_path):
    rope = RopeConfig(scaling="dynamic", factor=2.0, original_length=64)
    config = tiny.config(depth=1, attention=AttentionConfig(heads=2, rope=rope))
    extra_config = {"max_position_embeddings": 256, "eos_token_id": 7}
    hub.save(tiny.model(config), config, tmp_path, extra_config=extra_config)
    keys = json.loads((tmp_path / "config.json").read_text())
    assert (keys["max_position_embeddings"], keys["eos_token_id"]) == (64, 7)


def test_check_tells_the_differences_to_a_reference(tmp_path, capsys):
    folder = goldens.copy("llama_bfloat16", tmp_path / "x")
    inputs = goldens.arrays("llama_bfloat16", "inputs")
    inputs.pop("prompt_ids")
    outputs = {name: array.copy() for name, array in hub.forward(folder, inputs).items()}
    outputs["logits"][0, 0, 0] += 1.0
    expected = {name: outputs[name] for name in ("logits", "last_hidden_state")}
    safetensors_io.write_shards(_made_folder(tmp_path / "y"), expected.items())
    (tmp_path / "y" / "model.safetensors").rename(folder / "outputs_f64.safetensors")
    with pytest.raises(CheckpointError, match="1 of 5 outputs differ from the reference"):
        command.run(["check", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    found = [(*line.split()[:3], line.endswith("DIFFERENT")) for line in lines]
    assert [row[:2] for row in found[:2]] == [
        ("outputs_f64", "logits"),
        ("outputs_f64", "last_hidden_state"),
    ]
    assert float(found[0][2]) > 0.1 and float(found[1][2]) == 0
    # The logits of expected.safetensors are a sample, and ids are compared one by one.
    sampled = {row[1]: row[2] for row in found if row[0] == "expected"}
    assert set(sampled) == {"greedy_ids", "greedy_logits", "logits"} and len(found) == 5
    assert [row[3] for row in found] == [True, False, False, False, False]
    assert sampled["greedy_ids"] == "equal" and 0 < float(sampled["logits"]) < 1e-8
    goldens.copy("bert", tmp_path / "bert")  # Padding in front of a row has no pooled output.
    assert command.run_command(command.run, ["check", str(tmp_path / "bert")]) == 0
    assert "DIFFERENT" not in capsys.readouterr().out
    for wrong, message in (
        (["import", "x"], "required: --workdir"),
        (["export", "x"], "required: DST"),
        (["chek", "x"], "invalid choice: 'chek'"),
        ([], "required: COMMAND"),
    ):
        with pytest.raises(ConfigError, match=message):
            command.run(wrong)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_commands_and_the_flags(flag, capsys):
    with pytest.raises(SystemExit, match="0"):
        command.run([flag])
    said = capsys.readouterr().out
    for part in ("import SRC --workdir=RUN", "export RUN DST", "check DIR", "--family", "--dtype"):
        assert part in said


def _made_folder(path: Path) -> Path:
    path.mkdir()
    return path
