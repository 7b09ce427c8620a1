"""Compares the families that read images with their references: outputs, and round trips.

tests/goldens/vision/NAME has the files of tests/goldens/hf, whose module `hub_goldens` describes
their origin. The expected outputs are all in float64.
"""

import json
import shutil

import hub_goldens as goldens
import numpy as np
import pytest

import hub
from arch.cost.totals import compute_cost
from configs.images import llava
from errors import CheckpointError, ConfigError
from hub import safetensors_io
from hub.config_equivalence import differences
from hub.families import lookup

NAMES = sorted(path.name for path in goldens.VISION_FOLDER.iterdir())
SOME = [pytest.param(n, marks=pytest.mark.slow if n == "llava" else []) for n in NAMES]
UNUSED = {"llava": ("encoder.layers.2.", "post_layernorm")}  # Behind the block that is selected.
IS_INTERMEDIATE = ("vision_last_hidden_state",)  # Before the norm, which the pooled vector has.


def read(name: str, file: str) -> dict[str, np.ndarray]:
    """Returns the arrays of one file."""
    return safetensors_io.read_file(goldens.VISION_FOLDER / name / f"{file}.safetensors")


@pytest.mark.parametrize("name", SOME)
def test_outputs_in_float64_are_those_of_the_reference(name):
    inputs, reference = read(name, "inputs"), read(name, "expected")
    got = hub.forward(goldens.VISION_FOLDER / name, inputs)
    assert set(reference) - set(IS_INTERMEDIATE) <= set(got)
    for key in set(reference) & set(got):
        expected = reference[key]
        gap = np.abs(got[key].reshape(expected.shape) - expected)
        is_per_token = expected.ndim == 3 and "attention_mask" in inputs
        gap = gap[inputs["attention_mask"] != 0] if is_per_token else gap
        assert got[key].dtype == np.float64
        assert gap.max() / np.sqrt(np.mean(expected**2)) < 1e-8, key


@pytest.mark.parametrize("name", SOME)
def test_what_is_exported_has_the_bytes_that_were_imported(name, tmp_path):
    folder = goldens.VISION_FOLDER / name
    family, config = lookup.detect_family(folder)
    model, _, _ = hub.load(folder)
    hub.save(model, config, tmp_path)
    expected, got = (safetensors_io.read_entries(f) for f in (folder, tmp_path))
    unused = {n for n in expected if any(part in n for part in UNUSED.get(name, ()))}
    assert set(got) == set(expected) - unused
    for key in got:
        tensors = [safetensors_io.read_tensor(entries[key]) for entries in (got, expected)]
        assert tensors[0].shape == tensors[1].shape
        assert tensors[0].tobytes() == tensors[1].tobytes(), key
    reread, reread_config = lookup.detect_family(tmp_path)
    assert reread.model_type == family.model_type == name
    assert not differences(config, reread_config)


@pytest.mark.parametrize("name", NAMES)
def test_configs_of_older_versions_mean_the_same(name, tmp_path):
    for file in ("config_v4.json", "model.safetensors"):
        target = "config.json" if file.endswith("json") else file
        shutil.copyfile(goldens.VISION_FOLDER / name / file, tmp_path / target)
    old, new = (lookup.detect_family(f)[1] for f in (tmp_path, goldens.VISION_FOLDER / name))
    assert not differences(old, new)


@pytest.mark.parametrize(
    ("name", "changes", "error", "words"),
    [
        ("clip", {"vision_config.sauce": 1}, ConfigError, ["vision_config", "sauce=1"]),
        ("clip", {"text_config.hidden_act": "gelu_9"}, ConfigError, ["text_config", "gelu_9"]),
        ("clip", {"vision_config.model_type": "siglip"}, ConfigError, ["siglip", "clip_vision"]),
        ("clip", {"vision_config": 3}, ConfigError, ["vision_config 3", "section"]),
        (
            *("clip", {"vision_config.num_hidden_layers": 10**6}, CheckpointError),
            ["vision_config: num_hidden_layers", "room"],
        ),
        ("llava", {"vision_feature_layer": [-2, -3]}, ConfigError, ["vision_feature_layer"]),
        ("llava", {"vision_feature_select_strategy": "full"}, ConfigError, ["full", "default"]),
    ],
)
def test_an_option_that_is_not_implemented_is_refused_by_its_name(
    name, changes, error, words, tmp_path
):
    folder = tmp_path / "x"
    shutil.copytree(goldens.VISION_FOLDER / name, folder)
    values = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        section, _, inner = key.partition(".")
        if inner:
            values[section][inner] = value
        else:
            values[section] = value
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(error) as caught:
        hub.load(folder)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.slow
def test_images_matter_and_a_text_model_is_no_model_of_images():
    inputs = read("llava", "inputs")
    changed = inputs | {"pixel_values": inputs["pixel_values"] + 1}
    a, b = (hub.forward(goldens.VISION_FOLDER / "llava", x, "float32") for x in (inputs, changed))
    assert np.abs(a["logits"] - b["logits"]).max() > 1e-3
    _, config = lookup.detect_family(goldens.FOLDER / "llama3")
    assert lookup.find_export_family(config)[0].model_type == "llama"


def test_the_preset_of_llava_has_the_published_parameters():
    """transformers counts 7,063,427,072 with CLIP's 24th layer and last norm, which LLaVA skips."""
    unused = 4 * (1024**2 + 1024) + 2 * 4 * 1024**2 + 5 * 1024 + 2 * 2 * 1024 + 2 * 1024
    assert compute_cost(llava.model_config("7b"), 1024).params == 7_063_427_072 - unused
