"""Options of published configs: what a missing key means, and the rarer values of those there.

tests/goldens/families.json has the default of each key, by `model_type`, as the classes of Hugging
Face transformers 5.23.0 state them.
"""

import json

import hub_goldens as goldens
import pytest

from errors import ConfigError
from hub import checkpoint, tensors
from hub.families import FAMILIES
from hub.graph import differences, graph
from hub.keys import Keys, read_config

DEFAULTS = json.loads((goldens.FOLDER.parent / "families.json").read_text())
GOLDEN = {checkpoint.family_of(goldens.FOLDER / name)[0].kind: name for name in goldens.NAMES}


def outcome(kind, keys, names):
    """The graph that a config means, or the words that refuse it."""
    family = FAMILIES[kind]
    found = Keys(keys, "config.json", names, family.defaults)
    try:
        config = family.read(found)
        found.done()
    except ConfigError as error:
        return str(error)
    return graph(config)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_missing_key_means_what_it_means_to_the_reference(kind):
    """As its default, or it is refused by its name."""
    folder = goldens.FOLDER / GOLDEN[kind]
    names, keys = tensors.entries(folder), read_config(folder)
    for word in ("rope_parameters", "rope_scaling"):
        keys.pop(word, None)
    if kind == "qwen3_moe":  # as files of its publisher have it
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
    keys = read_config(goldens.FOLDER / GOLDEN[kind]) | changes
    config = FAMILIES[kind].read(Keys(keys, "config.json", ()))
    family, written = checkpoint.exported(config, kind)
    again = family.read(Keys(written, "config.json", ()))
    assert not differences(config, again)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_written_has_the_types_that_the_reference_asks_for(kind):
    """It takes a whole number for a float, and nothing else for anything else."""
    _, config = checkpoint.family_of(goldens.FOLDER / GOLDEN[kind])
    written = json.loads(json.dumps(FAMILIES[kind].write(config)))
    for key, default in DEFAULTS[kind].items():
        if default is not None and written.get(key) is not None:
            known = {int, float} if type(default) is float else {type(default)}
            assert type(written[key]) in known | ({int} if default == "auto" else set()), key


def test_bamba_turns_a_half_whatever_older_words_say():
    keys = read_config(goldens.FOLDER / "bamba")
    rope = keys.pop("rope_parameters")
    keys |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": 1.0}
    assert "partial_rotary_factor 1.0 is not implemented" in outcome("bamba", keys, ())


def test_a_modernbert_of_one_layer_is_refused():
    """Its first layer is one of its own kind, which stands before the pattern."""
    few = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    keys = read_config(goldens.FOLDER / "modernbert") | few
    assert "model.depth 1 does not hold" in outcome("modernbert", keys, ())
