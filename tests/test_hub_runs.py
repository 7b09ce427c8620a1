"""Checkpoints of Hugging Face as runs, and runs as checkpoints: nothing is lost on the way."""

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
from arch.attention import AttentionConfig
from arch.directions import DirectionsConfig
from arch.norms import NormConfig
from arch.rope import RopeConfig
from data.sources import DataConfig
from data.tokenizers import ByteTokenizer
from errors import ConfigError, DataError
from eval.subject import from_run
from hub import __main__ as command
from hub import run as runs
from hub import tensors
from hub.checkpoint import exported
from training import mesh as meshes
from training.flags import from_json
from training.program import program
from training.settings import Settings, resolved
from training.tree import frozen

CONFIG = tiny.config(vocab=365, depth=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A published folder, the run made of it, and the folder made of that."""
    root = tmp_path_factory.mktemp("runs")
    hub.save(tiny.model(CONFIG), CONFIG, root / "first")
    text = root / "text.txt"
    text.write_text("\n\n".join(f"some words of text {n}" for n in range(200)))
    where = {"source": "text", "path": str(text), "separator": "\n\n"}
    runs.adopt(str(root / "first"), root / "run", DataConfig(**where, cache=str(root / "cache")))
    runs.export(root / "run", root / "second")
    return root


def test_a_round_trip_through_a_run_is_exact(made):
    first, second = (tensors.entries(made / name) for name in ("first", "second"))
    assert set(first) == set(second)
    for name in first:
        assert tensors.read(first[name]).tobytes() == tensors.read(second[name]).tobytes()
    keys = json.loads((made / "second" / "config.json").read_text())
    assert (keys["model_type"], keys["eos_token_id"]) == ("llama", 258)
    assert keys["max_position_embeddings"] == 256
    ids = json.loads((made / "second" / "generation_config.json").read_text())
    assert ids == {"bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256}
    card = (made / "second" / "README.md").read_text()
    for word in ("LlamaForCausalLM", "sha256", "| seed | 0 |", "0 steps"):
        assert word in card


def test_evaluation_and_settings_read_the_run(made):
    subject, _, step = from_run(made / "run")
    assert step == 0
    kept = jax.tree.leaves(tiny.model(CONFIG))
    table = np.asarray(subject.learner.model.embed.table[...])
    np.testing.assert_array_equal(table, kept[0][:365])
    with pytest.raises(ConfigError, match="has a run already"):
        runs.adopt(str(made / "first"), made / "run", subject.settings.data)


def test_a_run_begins_with_a_published_folder(made):
    """Under another tiling of the pattern, and with a table padded to a multiple of 128."""
    record = json.loads((made / "run" / "run.json").read_text())
    settings = from_json(Settings, record["settings"])
    model = dataclasses.replace(
        settings.model, first=("attention+mlp",), vocab_multiple=128, remat="full"
    )
    settings = dataclasses.replace(settings, model=model)
    made_ = program(settings, meshes.build(meshes.MeshConfig()))
    bytes_ = ByteTokenizer().fingerprint
    learner = runs.parameters(str(made / "second"), made_, bytes_)
    assert jax.tree.structure(learner) == jax.tree.structure(made_.state.learner)
    old = tiny.model(CONFIG)
    np.testing.assert_array_equal(learner.model.embed.table[:365], old.embed.table[:365])
    assert learner.model.embed.table.shape == (384, 16)
    first = learner.model.stack.first[0].mixer.w_q[...]
    np.testing.assert_array_equal(first, old.stack.blocks[0].mixer.w_q[0])
    other = dataclasses.replace(
        settings, model=dataclasses.replace(model, norm=NormConfig(eps=1e-3))
    )
    made_ = made_._replace(settings=other)
    with pytest.raises(ConfigError, match=r"norm\.eps 0\.001, not 1e-06"):
        runs.parameters(str(made / "second"), made_, bytes_)
    with_tokenizer = Path(shutil.copytree(made / "second", made / "third"))
    ByteTokenizer().save(with_tokenizer)
    made_ = made_._replace(settings=settings)
    with pytest.raises(DataError, match="another tokenizer .* set data.tokenizer"):
        runs.parameters(str(with_tokenizer), made_, "0" * 64)


@pytest.mark.parametrize(
    ("mixer", "channel", "changes", "kind"),
    [
        ("attention", "mlp", {}, "llama"),
        ("local_attention", "mlp", {}, "mistral"),
        ("attention", "moe", {}, "mixtral"),
        ("mamba2", "none", {"directions": DirectionsConfig("shared")}, "mamba2"),
        (
            *("mamba2", "mlp"),
            {
                "layers": ("mamba2+mlp",) * 3 + ("attention+mlp",),
                "attention": AttentionConfig(heads=2, rope=RopeConfig(width=4)),
                "depth": 5,
            },
            "bamba",
        ),
    ],
)
def test_what_is_trained_here_is_exported_as_its_nearest_family(mixer, channel, changes, kind):
    family, _ = exported(tiny.config(mixer, channel, **changes))
    assert family.kind == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("dense", "llama"), ("moe", "mixtral"), ("mamba1", "mamba"), ("mamba2", "mamba2")],
        ("hybrid", "bamba"),
    ],
)
def test_ready_configs_are_exported_as_they_are(name, kind):
    settings = frozen(Settings, importlib.import_module(f"configs.{name}").get_config("tiny"))
    family, keys = exported(resolved(settings, 365).model, views=["causal"])
    assert family.kind == kind
    if name == "hybrid":  # the reference hears another share than a half nowhere else
        assert "partial_rotary_factor" not in keys
        assert keys["rope_parameters"]["partial_rotary_factor"] == 1.0


def test_a_family_reads_rows_as_the_run_did():
    """A model that saw both sides is no llama, which sees one, though their weights fit."""
    with pytest.raises(ConfigError, match="llama would differ in the view both, not causal"):
        exported(tiny.config(), "llama", views=["both"])
    with pytest.raises(ConfigError, match="no family computes"):
        exported(tiny.config(), views=["prefix"])
    assert exported(tiny.config(), views=["causal", "prefix"])[0].kind == "llama"


def test_what_a_run_adds_leaves_the_family_its_own_words(tmp_path):
    rope = RopeConfig(scaling="dynamic", factor=2.0, original=64)
    config = tiny.config(depth=1, attention=AttentionConfig(heads=2, rope=rope))
    about = {"max_position_embeddings": 256, "eos_token_id": 7}
    hub.save(tiny.model(config), config, tmp_path, about=about)
    keys = json.loads((tmp_path / "config.json").read_text())
    assert (keys["max_position_embeddings"], keys["eos_token_id"]) == (64, 7)


def test_check_tells_the_differences_to_a_reference(tmp_path, capsys):
    folder = goldens.copy("llama_bfloat16", tmp_path / "x")
    inputs = goldens.arrays("llama_bfloat16", "inputs")
    inputs.pop("prompt_ids")
    wanted = {name: array.copy() for name, array in hub.forward(folder, inputs).items()}
    wanted["logits"][0, 0, 0] += 1.0
    held = {name: wanted[name] for name in ("logits", "last_hidden_state")}
    tensors.write(_made(tmp_path / "y"), held.items())
    (tmp_path / "y" / "model.safetensors").rename(folder / "outputs_f64.safetensors")
    command.run(["check", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["logits", "last_hidden_state"]
    assert float(lines[0].split()[2]) > 0.1
    assert float(lines[1].split()[2]) == 0
    for wrong in (["import", "x"], ["export", "x"], ["chek", "x"], []):
        with pytest.raises(ConfigError, match="say python -m hub import"):
            command.run(wrong)


def _made(path: Path) -> Path:
    path.mkdir()
    return path
