"""Tests that Hugging Face's classes compute the same from an export, or that it is refused.

The tensors and keys that transformers 5.23 reads were measured with it, from random weights.
"""

import dataclasses
import json

import hub_goldens as goldens
import jax
import numpy as np
import pytest
import tiny

import hub
from arch import Model
from arch.layers.embedding import EmbedConfig, HeadConfig
from arch.mixers.combined.bidirectional import BidirectionalConfig
from configs.families import switch, vicuna
from data.tokenizers import ByteTokenizer, train_bpe
from errors import CheckpointError, ConfigError
from hub import hf_config, safetensors_io
from hub import run as runs
from hub.families import FAMILIES, lookup
from hub.name_binding import LeafIndex, _add_unique, index_leaves, resolve_name_map
from training.settings import Settings


def changed_golden(name, target, changes, extra=None):
    """Copies a golden with changed keys and additional tensors."""
    folder = goldens.copy(name, target, exclude=("model.safetensors",))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    safetensors_io.write_shards(folder, (goldens.arrays(name, "model") | (extra or {})).items())
    return folder


def resave(folder, target):
    """Loads and saves a folder, and returns the written tensors and keys."""
    model, config, _ = hub.load(folder)
    hub.save(model, config, target)
    return safetensors_io.read_file(target / "model.safetensors"), hf_config.read_config(target)


def test_a_folder_that_holds_weights_is_refused(tmp_path):
    """The index of an older checkpoint would take precedence over a newer single file."""
    config = tiny.config(depth=1)
    hub.save(tiny.model(config), config, tmp_path / "x", max_shard_bytes=4000)
    files = sorted(path.name for path in (tmp_path / "x").iterdir())
    with pytest.raises(ConfigError, match=r"holds weights already \(model-00001-of-"):
        hub.save(tiny.model(config), config, tmp_path / "x")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == files


def test_a_switch_without_slots_is_refused_both_ways(tmp_path):
    """In the reference, expert_capacity 0 drops every token, and a missing key means 64."""
    name = "switch_transformers"
    _, config = lookup.detect_family(goldens.FOLDER / name)
    free = dataclasses.replace(
        config, moe=dataclasses.replace(config.moe, expert_capacity=0, capacity_factor=1.25)
    )
    with pytest.raises(ConfigError, match=r"moe\.expert_capacity 0, not 64"):
        lookup.find_export_family(free, name)
    with pytest.raises(ConfigError, match="expert_capacity 0 is not implemented; known: 1 or more"):
        hub.load(changed_golden(name, tmp_path / "x", {"expert_capacity": 0}))


@pytest.mark.parametrize("size", ["base-8", "base-128"])
def test_published_switches_are_exported_with_their_capacity(size):
    family, keys = lookup.find_export_family(switch.model_config(size))
    assert (family.model_type, keys["expert_capacity"]) == ("switch_transformers", 64)


@pytest.mark.parametrize(("name", "base"), [("bert", "cls.predictions."), ("roberta", "lm_head.")])
def test_an_untied_head_has_the_bias_that_version_5_reads(tmp_path, name, base):
    """Version 5 reads decoder.bias and ignores bias; version 4 has one array for both."""
    tensors = goldens.arrays(name, "model")
    rng, (V, D) = (
        np.random.default_rng(0),
        tensors[f"{name}.embeddings.word_embeddings.weight"].shape,
    )
    extra = {f"{base}decoder.weight": rng.normal(size=(V, D)).astype("f4")}
    extra[f"{base}decoder.bias"] = rng.normal(size=V).astype("f4")
    extra[f"{base}bias"] = np.zeros(V, "f4")
    folder = changed_golden(name, tmp_path / "x", {"tie_word_embeddings": False}, extra)
    model, config, _ = hub.load(folder)
    assert not config.head.tied
    np.testing.assert_array_equal(model.head.bias[...], extra[f"{base}decoder.bias"])
    found, keys = resave(folder, tmp_path / "y")
    assert keys["tie_word_embeddings"] is False
    for key in ("decoder.bias", "bias"):
        np.testing.assert_array_equal(found[base + key], extra[f"{base}decoder.bias"])
    old = tensors | {f"{base}decoder.weight": extra[f"{base}decoder.weight"]}
    (folder / "model.safetensors").unlink()
    safetensors_io.write_shards(folder, old.items())
    model, _, _ = hub.load(folder)
    np.testing.assert_array_equal(model.head.bias[...], tensors[f"{base}bias"])


@pytest.mark.parametrize(
    ("name", "changes"), [("switch_transformers", {"tie_word_embeddings": False}), ("t5_v1_1", {})]
)
def test_an_untied_encoder_decoder_has_its_table_three_times(tmp_path, name, changes):
    table = goldens.arrays(name, "model")["shared.weight"]
    found, _ = resave(
        changed_golden(name, tmp_path / "x", changes, {"lm_head.weight": table[::-1].copy()}),
        tmp_path / "y",
    )
    for stack in ("encoder", "decoder"):
        np.testing.assert_array_equal(found[f"{stack}.embed_tokens.weight"], table)
    np.testing.assert_array_equal(found["lm_head.weight"], table[::-1])


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": HeadConfig(bias=True)}, "head.mlm_transform False, not True"),
        ({"embed": EmbedConfig(norm=True)}, "embed.token_types 0, not 1 or more"),
    ],
)
def test_a_bert_without_what_its_class_has_is_refused(name, changes, words):
    _, config = lookup.detect_family(goldens.FOLDER / name)
    with pytest.raises(ConfigError, match=words):
        lookup.find_export_family(dataclasses.replace(config, **changes), name)
    assert lookup.find_export_family(config, name)[0] is FAMILIES[name]


def test_a_tied_head_without_a_scale_is_no_switch():
    _, config = lookup.detect_family(goldens.FOLDER / "switch_transformers")
    with pytest.raises(ConfigError, match=r"head\.tied True without a head\.scale"):
        lookup.find_export_family(
            dataclasses.replace(config, head=HeadConfig()), "switch_transformers"
        )


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("t5_v1_0", {"is_gated_act": True}, "is_gated_act True"),
        ("t5_v1_0", {"dense_act_fn": "gelu_new"}, "dense_act_fn 'gelu_new'"),
        ("t5_v1_1", {"dense_act_fn": "gelu"}, "dense_act_fn 'gelu'"),
        ("t5_v1_1", {"is_gated_act": False}, "is_gated_act False"),
    ],
)
def test_a_t5_that_says_its_activation_twice_says_the_same(tmp_path, name, changes, word):
    """In the reference these keys take precedence over feed_forward_proj."""
    with pytest.raises(ConfigError, match=f"{word} is not implemented"):
        hub.load(changed_golden(name, tmp_path / "x", changes))


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
@pytest.mark.parametrize(("weights", "merge"), [("shared", "gate"), ("separate", "sum")])
def test_what_joins_two_directions_is_no_part_of_the_mixer(mixer, weights, merge):
    """The gate of the directions and the gate of Mamba have the same name in their modules."""
    config = tiny.config(mixer, "none", bidirectional=BidirectionalConfig(weights, merge))
    shapes = jax.eval_shape(lambda: Model(config, key=jax.random.key(0)))
    assert index_leaves(config, shapes)[f"stack.0.{mixer}.w_gate"].leaf.endswith(
        "mixer.forward.w_gate"
    )
    family = FAMILIES[mixer.removesuffix("1")]
    with pytest.raises(CheckpointError, match=rf"no names for stack\.0\.{mixer}\.bidirectional\."):
        resolve_name_map(config, shapes, family.name_map(config))
    with pytest.raises(ConfigError, match="no family computes"):
        lookup.find_export_family(config)


def test_two_leaves_of_one_name_are_refused():
    found = {}
    _add_unique(found, "stack.0.mamba1.w_gate", LeafIndex("a", -1))
    with pytest.raises(
        CheckpointError, match=r"a and b have the same name stack\.0\.mamba1\.w_gate"
    ):
        _add_unique(found, "stack.0.mamba1.w_gate", LeafIndex("b", -1))


def test_a_gemma2_without_windows_has_the_window_that_its_class_asks_for():
    """With null the class raises an error."""
    _, config = lookup.detect_family(goldens.FOLDER / "gemma2")
    _, keys = lookup.find_export_family(
        dataclasses.replace(config, layers=("attention+mlp",)), "gemma2"
    )
    assert set(keys["layer_types"]) == {"full_attention"}
    assert keys["sliding_window"] == 4096


def test_a_bamba_without_attention_uses_no_cache():
    """The cache takes its length from an attention layer."""
    _, config = lookup.detect_family(goldens.FOLDER / "bamba")
    assert "use_cache" not in lookup.find_export_family(config, "bamba")[1]
    mamba_only = dataclasses.replace(config, layers=("mamba2+mlp",), first_layers=())
    assert lookup.find_export_family(mamba_only, "bamba")[1]["use_cache"] is False


@pytest.mark.parametrize("name", ["phi3", "modernbert", "olmo_hybrid", "kimi_linear"])
def test_an_id_of_the_reference_without_an_embedding_is_written_as_null(name, tmp_path):
    """Otherwise its class raises: the padding that a missing key means is beyond the table."""
    family, config = lookup.detect_family(goldens.FOLDER / name)
    large = dataclasses.replace(config, vocab_size=200_000)
    assert family.default_keys(large) == {}
    model, ids = hub.load(goldens.FOLDER / name)[0], {"eos_token_id": 3}
    hub.save(model, config, tmp_path, family=name, extra_config=ids)
    keys = hf_config.read_config(tmp_path)
    assert keys["pad_token_id"] is None and keys["eos_token_id"] == 3


def test_rotary_fields_that_a_scaling_does_not_use_are_no_difference():
    config = vicuna.model_config("7b-16k")
    assert config.attention.rope.original_length == 0
    rope = dataclasses.replace(config.attention.rope, original_length=4096, low_freq_factor=2.0)
    attention = dataclasses.replace(config.attention, rope=rope)
    _, keys = lookup.find_export_family(dataclasses.replace(config, attention=attention), "llama")
    assert keys["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    rope = dataclasses.replace(
        rope, scaling="llama3", original_length=4096, factor=8.0, low_freq_factor=1.0
    )
    attention = dataclasses.replace(attention, rope=rope)
    _, keys = lookup.find_export_family(dataclasses.replace(config, attention=attention), "llama")
    assert keys["rope_scaling"]["original_max_position_embeddings"] == 4096


@pytest.mark.parametrize("pad", [256, 0, -1])
def test_a_roberta_whose_texts_are_padded_otherwise_is_refused(tmp_path, pad):
    """The reference counts the tokens that are not `pad_token_id`, which is one below `offset`."""
    _, config = lookup.detect_family(goldens.FOLDER / "roberta")
    with pytest.raises(ConfigError, match=f"padding {pad}, which must be 1, one below"):
        lookup.find_export_family(config, pad_id=pad)
    assert lookup.find_export_family(config, pad_id=1)[1]["pad_token_id"] == 1
    model, _, _ = hub.load(goldens.FOLDER / "roberta")
    with pytest.raises(ConfigError, match=f"padding {pad}, which"):
        hub.save(model, config, tmp_path / "x", extra_config={"pad_token_id": pad})
    with pytest.raises(ConfigError, match="padding 256, which"):
        hub.save(model, config, tmp_path / "x", tokenizer=ByteTokenizer())
    assert not (tmp_path / "x").exists()


def test_a_decoder_starts_as_it_did_in_training(tmp_path):
    """It starts with the tokenizer's bos, or without a tokenizer with 0, as in published models."""
    model, config, _ = hub.load(goldens.FOLDER / "t5_v1_0")
    hub.save(model, config, tmp_path / "published")
    assert hf_config.read_config(tmp_path / "published")["decoder_start_token_id"] == 0
    settings, tokenizer = Settings(model=config, objective="denoising"), ByteTokenizer()
    use = runs.text_use(settings, tokenizer, is_causal=False)
    extra_config = runs.make_extra_config(settings, tokenizer, use)
    hub.save(model, config, tmp_path / "trained", extra_config=extra_config)
    assert hf_config.read_config(tmp_path / "trained")["decoder_start_token_id"] == 257


def test_an_exported_tokenizer_is_one_of_no_model(tmp_path):
    """Otherwise AutoTokenizer takes the class of the `model_type`, which adds special tokens."""
    config, ours = tiny.config(depth=1), train_bpe(["some words, and more words"] * 9, 300)
    hub.save(tiny.model(config), config, tmp_path / "bpe", tokenizer=ours)
    assert json.loads((tmp_path / "bpe" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "isoflop_tokenizer": ours.fingerprint,
        **{f"{name}_token": f"<|{name}|>" for name in ("pad", "bos", "eos", "sep", "cls", "mask")},
    }
    hub.save(tiny.model(config), config, tmp_path / "bytes", tokenizer=ByteTokenizer())
    assert not (tmp_path / "bytes" / "tokenizer_config.json").exists()
