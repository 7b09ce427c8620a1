"""Tests reading and writing of published checkpoints, and that unsupported options are refused."""

import dataclasses
import json
import struct
import sys
import types

import hub_goldens as goldens
import jax
import numpy as np
import pytest
import tiny

import hub
from arch.sharding import P
from data.tokenizers import ByteTokenizer
from errors import CheckpointError, ConfigError
from hub import download, hf_config, rotary, safetensors_io, vocabulary
from hub.config_equivalence import differences
from hub.families import FAMILIES, lookup
from hub.hf_config import HfConfig
from hub.tensor_transforms import CONV1D, IDENTITY, TRANSPOSED, TensorMap, concat_fused, split_fused
from training import mesh as meshes


@pytest.fixture
def folder(tmp_path):
    return goldens.copy("llama_sharded", tmp_path / "sharded")


def change(folder, changes):
    """Updates keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama9"}, ["'llama9'", "known: llama, mistral"]),
        ({"model_type": None}, ["None", "known: llama"]),
        ({"hidden_act": "gelu_10"}, ["hidden_act 'gelu_10'", "known: silu"]),
        ({"secret_sauce": 3}, ["secret_sauce=3"]),
        ({"is_decoder": True}, ["is_decoder True"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"rope_parameters": {"rope_type": "spiral"}}, ["'spiral'", "longrope"]),
        ({"rope_parameters": {"rope_type": "linear", "factr": 2.0}}, ["factr=2.0"]),
        ({"hidden_size": None}, ["lacks hidden_size"]),
        ({"num_key_value_heads": 3}, ["kv_heads 3"]),
    ],
)
def test_an_option_that_is_not_implemented_is_refused_by_its_name(folder, changes, words):
    change(folder, changes)
    with pytest.raises(ConfigError) as error:
        hub.load(folder)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_family_has_the_name_of_the_table():
    assert all(family.model_type == name for name, family in FAMILIES.items())
    assert "llama" in FAMILIES and "alpaca" not in FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_passes_over_a_key(family):
    folder = next(
        path
        for root in (goldens.FOLDER, goldens.VISION_FOLDER)
        for path in sorted(root.iterdir())
        if lookup.detect_family(path)[0].model_type == family
    )
    values = json.loads((folder / "config.json").read_text())
    names = safetensors_io.read_entries(folder)
    keys = HfConfig(hf_config.read_config(folder) | {"new_option": 1}, "x", names)
    FAMILIES[family].read(keys)
    with pytest.raises(ConfigError, match="new_option=1"):
        keys.check_all_read()
    assert values["model_type"] == family


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path):
    # covers S12
    folder = goldens.copy("llama_bfloat16", tmp_path / "x", exclude=("model.safetensors",))
    tensors = goldens.arrays("llama_bfloat16", "model")
    gone, extra = "model.layers.1.self_attn.q_proj.weight", "model.layers.9.mlp.up_proj.weight"
    short = "model.layers.0.mlp.down_proj.weight"
    tensors[extra] = tensors.pop(gone)
    tensors[short] = tensors[short][:-1]
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)
    safetensors_io.write_shards(folder, tensors.items())
    with pytest.raises(CheckpointError) as error:
        hub.load(folder)
    for word in (gone, extra, f"{short} [31, 48], must be [32, 48]", "model.norm.weight"):
        assert word in str(error.value)


def damage(folder, how):
    """Damages the only file of a checkpoint in one way."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + size])
    first = next(name for name in table if name != "__metadata__")
    if how == "cut":
        data = data[:-5]
    elif how == "longer":
        data += b"....."
    elif how == "empty":
        data = b""
    elif how == "header too long":
        data = struct.pack("<Q", 1 << 60) + data[8:]
    elif how == "no JSON":
        data = data[:8] + b"x" * size + data[8 + size :]
    elif how in ("overlap", "shape", "dtype", "negative", "gap"):
        entry = table[first]
        begin, end = entry["data_offsets"]
        entry |= {
            "overlap": {"data_offsets": [begin + 4, end + 4]},
            "shape": {"shape": [1 << 40, 1 << 40]},
            "dtype": {"dtype": "F8_E5M2"},
            "negative": {"data_offsets": [-4, end]},
            "gap": {"shape": [0], "data_offsets": [begin, begin]},
        }[how]
        text = json.dumps(table).encode()
        data = struct.pack("<Q", len(text)) + text + data[8 + size :]
    path.write_bytes(data)


@pytest.mark.parametrize(
    "how",
    ["cut", "longer", "empty", "header too long", "no JSON", "overlap", "shape", "dtype"]
    + ["negative", "gap"],
)
def test_a_damaged_file_is_refused_before_it_is_read(tmp_path, how):
    # covers S12
    folder = goldens.copy("llama_bfloat16", tmp_path / "x")
    damage(folder, how)
    # A dtype of quantized weights is no damage: another download would have it too.
    reason = "dtype F8_E5M2, which is not read .* convert the weights" if how == "dtype" else ""
    with pytest.raises(CheckpointError, match=reason or "damaged|not those of the llama") as error:
        hub.load(folder)
    assert "\n" not in str(error.value)


def test_a_missing_shard_is_named(folder):
    (folder / "model-00003-of-00007.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 7 shards: model-00003-of-00007"):
        hub.load(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd"])
def test_an_index_cannot_name_files_elsewhere(folder, name):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        hub.load(folder)


def test_an_index_that_names_tensors_wrongly_is_refused(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.bias"] = "model-00001-of-00007.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"disagree on model\.norm\.bias"):
        hub.load(folder)


def test_pickled_weights_are_never_read(tmp_path):
    # covers S3
    folder = goldens.copy("llama2", tmp_path / "x", exclude=("model.safetensors",))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, which is not read"):
        hub.load(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    ByteTokenizer().save(folder)
    with pytest.raises(CheckpointError, match="has the id 364, the model 128 ids"):
        hub.load(folder)
    big = dataclasses.replace(lookup.detect_family(folder)[1], vocab_size=400)
    assert vocabulary.load_tokenizer(folder, big).vocab_size == 365


def test_a_head_that_is_not_the_embedding_it_is_said_to_be(tmp_path):
    folder = goldens.copy("gpt2", tmp_path / "x", exclude=("model.safetensors",))
    tensors = goldens.arrays("gpt2", "model")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    safetensors_io.write_shards(folder, tensors.items())
    hub.load(folder)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    safetensors_io.write_shards(folder, tensors.items())
    with pytest.raises(CheckpointError, match=r"lm_head.weight and transformer.wte.weight"):
        hub.load(folder)


def test_a_name_of_the_hub_without_the_library_or_offline(monkeypatch, tmp_path):
    # covers S11
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'isoflop\[hub\]'"):
        hub.load("openai-community/gpt2")
    requests = []

    class Api:
        def model_info(self, name, revision):
            requests.append((name, revision))
            return types.SimpleNamespace(sha="0123abcd")

    def snapshot(name, revision, allow_patterns, ignore_patterns, local_files_only=False):
        assert not local_files_only, "there was no earlier download"
        requests.append((name, revision, tuple(allow_patterns)))
        return str(goldens.FOLDER / "gpt2")

    fake = types.SimpleNamespace(HfApi=Api, snapshot_download=snapshot)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert download.resolve_folder("a/b@v1") == goldens.FOLDER / "gpt2"
    # The download is pinned to a commit, and limited to weights, JSON and a chat template.
    assert requests == [("a/b", "v1"), ("a/b", "0123abcd", ("*.json", "*.safetensors", "*.jinja"))]
    Api.model_info = lambda *a, **k: 1 / 0
    with pytest.raises(CheckpointError, match=r"a/b@main cannot be downloaded .* local folder"):
        hub.load("a/b")
    with pytest.raises(CheckpointError, match="neither a folder nor the owner/name"):
        hub.load(tmp_path / "missing")


TRANSFORMS = {"identity": IDENTITY, "transposed": TRANSPOSED, "conv1d": CONV1D}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("n_groups", [1, 3])
def test_layouts_are_pairs_of_inverses(name, n_groups):
    sizes = (4, 2, 1)
    total = n_groups * sum(sizes)
    shape = {"identity": (5, total), "transposed": (total, 5), "conv1d": (total, 1, 5)}[name]
    tensor = np.arange(np.prod(shape)).reshape(shape)
    tensor_map = TensorMap(("a", "b", "c"), "x", TRANSFORMS[name], sizes, n_groups)
    parts = split_fused(tensor_map.transform.from_hf(tensor), tensor_map)
    assert [p.shape for p in parts] == [(5, n_groups * n) for n in sizes]
    restored = tensor_map.transform.to_hf(concat_fused(parts, tensor_map))
    np.testing.assert_array_equal(restored, tensor)


def test_fused_heads_are_cut_group_by_group():
    """Splits two groups of [2 queries, key, value], each of width one."""
    tensor_map = TensorMap(("q", "k", "v"), "x", TRANSPOSED, (2, 1, 1), 2)
    rows = np.array(["q0", "q1", "k0", "v0", "q2", "q3", "k1", "v1"])[:, None]
    parts = split_fused(tensor_map.transform.from_hf(rows), tensor_map)
    q, k, v = (part[0].tolist() for part in parts)
    assert (q, k, v) == (["q0", "q1", "q2", "q3"], ["k0", "k1"], ["v0", "v1"])


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64},
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
                "mscale": 0.7,
                "mscale_all_dim": 1.0,
                "truncate": False,
            }
        },
        {
            "rope_scaling": {
                "type": "su",
                "short_factor": [1.0, 2.0],
                "long_factor": [3.0, 4.0],
                "original_max_position_embeddings": 64,
            },
            "max_position_embeddings": 256,
        },
        {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}, "rope_theta": 1e4},
    ],
)
def test_rotary_positions_are_written_as_they_were_read(keys):
    cfg = rotary.from_hf(HfConfig(keys, "x", ()), 4)
    assert rotary.from_hf(HfConfig(rotary.to_hf(cfg, 4), "x", ()), 4) == cfg


def test_parameters_go_to_the_mesh_piece_by_piece():
    mesh = meshes.make_mesh(meshes.MeshConfig(data=4, model=2))
    sharded, _, _ = hub.load(goldens.FOLDER / "mistral", mesh=mesh)
    single, _, _ = hub.load(goldens.FOLDER / "mistral")
    w = sharded.stack.blocks[0].mixer.w_q[...]
    assert w.sharding.spec == P(None, "data", "model")
    assert w.addressable_shards[0].data.shape == (3, 12, 24)
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(single), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shards_are_written_and_read(tmp_path):
    cfg = tiny.config(vocab_size=128, depth=3)
    hub.save(tiny.model(cfg), cfg, tmp_path, max_shard_bytes=8000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    model, config, _ = hub.load(tmp_path)
    assert not differences(cfg, config)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(tiny.model(cfg)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_that_no_family_computes_is_refused_with_the_difference():
    with pytest.raises(ConfigError, match="no family computes"):
        lookup.find_export_family(tiny.config("lstm"))
    with pytest.raises(ConfigError, match=r"llama would differ in layer0\.attention\.softcap 3\.0"):
        lookup.find_export_family(tiny.config(**tiny.attention(softcap=3.0)), "llama")
    with pytest.raises(ConfigError, match="'lama' is not known; did you mean 'llama'"):
        lookup.find_export_family(tiny.config(), "lama")


def test_padding_rows_of_the_table_are_not_exported(tmp_path):
    cfg = tiny.config(depth=1)  # 40 ids in 128 rows
    hub.save(tiny.model(cfg), cfg, tmp_path)
    entry = safetensors_io.read_entries(tmp_path)["model.embed_tokens.weight"]
    assert entry.shape == (40, 16)
    _, config, _ = hub.load(tmp_path)
    assert (config.vocab_size, config.padded_vocab_size) == (40, 40)


def test_a_bare_encoder_has_no_heads(tmp_path):
    """MiniLM's files have old names without a prefix, a pooler, and no head."""
    folder = goldens.copy("bert", tmp_path / "x", exclude=("model.safetensors",))
    tensors = goldens.arrays("bert", "model")
    bare = {k.removeprefix("bert."): v for k, v in tensors.items() if k.startswith("bert.")}
    bare["embeddings.position_ids"] = np.arange(64)[None]
    safetensors_io.write_shards(folder, bare.items())
    change(folder, {"architectures": ["BertModel"], "position_embedding_type": "absolute"})
    model, config, _ = hub.load(folder)
    assert config.pooler.kind == "first" and not config.pooler.num_classes
    assert not (config.head.mlm_transform or config.head.bias)
    expected = tensors["bert.pooler.dense.weight"].T
    np.testing.assert_array_equal(model.pooler.w_pool[...], expected)
