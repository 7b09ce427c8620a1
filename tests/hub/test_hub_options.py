"""Tests options of published configs: the meaning of missing keys, and rare values.

tests/goldens/families.json has the default of each key by `model_type`, from the classes of Hugging
Face transformers 5.23.0 (of qwen3_next, olmo_hybrid, kimi_linear and siglip_vision_model from
5.24.0).
"""

import json
import re

import hub_goldens as goldens
import pytest

from errors import ConfigError
from hub import safetensors_io
from hub.config_equivalence import canonical_config, differences
from hub.families import FAMILIES, lookup
from hub.hf_config import HfConfig, read_config

DEFAULTS = json.loads((goldens.FOLDER.parent / "families.json").read_text())
FOLDERS = [*(goldens.FOLDER / name for name in goldens.NAMES), *goldens.VISION_FOLDER.iterdir()]
GOLDEN = {lookup.detect_family(folder)[0].model_type: folder for folder in FOLDERS}


def outcome(kind, keys, names):
    """Returns the canonical form of a config, or the message that refuses it."""
    family = FAMILIES[kind]
    hf = HfConfig(keys, "config.json", names, family.hf_defaults)
    try:
        config = family.read(hf)
        hf.check_all_read()
    except ConfigError as error:
        return str(error)
    return canonical_config(config)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_missing_key_means_what_it_means_to_the_reference(kind):
    """A missing key means its default, or is refused by its name."""
    folder = GOLDEN[kind]
    names, keys = safetensors_io.read_entries(folder), read_config(folder)
    for word in ("rope_parameters", "rope_scaling"):
        keys.pop(word, None)
    if kind == "qwen3_moe":  # the name in the files of its publisher
        keys["num_experts"] = keys.pop("num_local_experts")
    if "rope_theta" in DEFAULTS[kind]:
        keys["rope_theta"] = 777.0
    for key, default in DEFAULTS[kind].items():
        without = outcome(kind, {k: v for k, v in keys.items() if k != key}, names)
        assert without == outcome(kind, keys | {key: default}, names) or f"lacks {key}" in without


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bamba", {"attn_layer_indices": [0, 1, 2]}),
        ("bamba", {"attn_layer_indices": []}),
        ("jamba", {"attn_layer_period": 1, "attn_layer_offset": 0}),
        ("jamba", {"attn_layer_period": 9, "attn_layer_offset": 8}),
        ("jamba", {"num_experts": 1}),
    ],
)
def test_one_kind_of_layer_alone_is_written_as_it_was_read(kind, changes):
    keys = read_config(GOLDEN[kind]) | changes
    config = FAMILIES[kind].read(HfConfig(keys, "config.json", ()))
    family, written = lookup.find_export_family(config, kind)
    reread = family.read(HfConfig(written, "config.json", ()))
    assert not differences(config, reread)


NO_POSITIONS = {"rope_parameters": {"rope_theta": None, "rope_type": "default"}}


@pytest.mark.parametrize("changes", [NO_POSITIONS, {"rope_parameters": None, "rope_theta": None}])
def test_an_olmo_hybrid_without_a_base_has_no_positions(changes):
    keys = read_config(goldens.FOLDER / "olmo_hybrid") | changes
    config = FAMILIES["olmo_hybrid"].read(HfConfig(keys, "config.json", ()))
    assert config.attention.position_encoding == "none"
    _, written = lookup.find_export_family(config)
    assert written["rope_theta"] is None and written["layer_types"] == keys["layer_types"]


LISTS = {"kda_layers": [1, 2], "full_attn_layers": [4]}
# Options that the publisher's files of Kimi Linear have, and other spellings of its keys.
KIMI_OPTIONS = {"mla_use_nope": True, "moe_layer_freq": 1, "moe_router_activation_func": "sigmoid"}
KIMI_OPTIONS |= {"use_grouped_topk": True, "num_nextn_predict_layers": 0, "rope_theta": 1e4}
KIMI_SPELLINGS = {
    "num_experts": "num_local_experts",
    "num_experts_per_token": "num_experts_per_tok",
}
KIMI_SPELLINGS |= {"num_expert_group": "n_group", "moe_renormalize": "norm_topk_prob"}
KIMI_SPELLINGS |= {"num_shared_experts": "n_shared_experts"}


def test_both_spellings_of_the_keys_of_kimi_linear_mean_the_same():
    keys = read_config(goldens.FOLDER / "kimi_linear")
    keys |= {"num_expert_group": 3, "moe_renormalize": False, "num_shared_experts": 2}
    respelled = {KIMI_SPELLINGS.get(name, name): value for name, value in keys.items()}
    expected = outcome("kimi_linear", keys, ())
    assert expected["layer1.moe.n_groups"] == 3 and expected["layer1.moe.top_groups"] == 1
    assert outcome("kimi_linear", respelled | KIMI_OPTIONS, ()) == expected


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("olmo_hybrid", {"linear_num_key_heads": 2}, "linear_num_key_heads 2 .*must be 4"),
        ("olmo_hybrid", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not implemented"),
        ("qwen3_next", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not implemented"),
        ("qwen3_next", {"attention_bias": True}, "attention_bias True is not implemented"),
        ("kimi_linear", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not implemented"),
        ("kimi_linear", {"mla_use_nope": False}, "mla_use_nope False is not implemented"),
        ("kimi_linear", {"mlp_layer_types": ["dense"]}, "must be a list of 4, .*sparse"),
        ("kimi_linear", {"linear_attn_config": {"rank": 3}}, "it has no option rank"),
        ("kimi_linear", {"linear_attn_config": LISTS}, "must list the layers 1 to 4"),
        ("qwen3_next", {"layer_types": ["full_attention"]}, "must be a list of 4, .*linear"),
    ],
)
def test_options_of_hybrids_that_are_not_implemented_are_refused(kind, changes, message):
    keys = read_config(GOLDEN[kind]) | changes
    assert re.search(message, str(outcome(kind, keys, ())))


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_written_has_the_types_that_the_reference_asks_for(kind):
    """The reference accepts an integer as a float; otherwise the types must be equal."""
    _, config = lookup.detect_family(GOLDEN[kind])
    written = json.loads(json.dumps(FAMILIES[kind].write(config)))
    for key, default in DEFAULTS[kind].items():
        if default is not None and written.get(key) is not None:
            types = {int, float} if type(default) is float else {type(default)}
            assert type(written[key]) in types | ({int} if default == "auto" else set()), key


def test_bamba_turns_a_half_whatever_older_words_say():
    keys = read_config(goldens.FOLDER / "bamba")
    rope = keys.pop("rope_parameters")
    keys |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": 1.0}
    assert "partial_rotary_factor 1.0 is not implemented" in outcome("bamba", keys, ())


def test_a_modernbert_of_one_layer_is_refused():
    """Its first layer is a prefix of the pattern, which needs at least one other layer."""
    few = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    keys = read_config(goldens.FOLDER / "modernbert") | few
    assert "model.depth 1 is too small" in outcome("modernbert", keys, ())
