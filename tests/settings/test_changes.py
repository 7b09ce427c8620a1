"""Changes by dotted key: what they replace, and what they refuse."""

import pytest

from arch import ModelConfig
from errors import ConfigError
from settings.changes import with_changes
from training.settings import Settings

VARIANTS = {"few": {"heads": 2, "rope": {"theta": 5.0}}, "wide": {"width": 64}}


def test_dotted_and_nested_changes_are_the_same():
    dotted = {"seed": 3, "model.width": 64, "model.attention.rope.theta": 5, "train.steps": 7}
    nested = {
        "seed": 3,
        "model": {"width": 64, "attention": {"rope": {"theta": 5}}},
        "train": {"steps": 7},
    }
    mixed = {"seed": 3, "model": {"width": 64, "attention.rope.theta": 5}, "train.steps": 7}
    settings = with_changes(Settings(), dotted)
    assert settings.model.attention.rope.theta == 5.0 and settings.train.steps == 7
    assert settings == with_changes(Settings(), nested) == with_changes(Settings(), mixed)
    assert with_changes(settings, {}) == settings and Settings().model.width == 256


def test_a_longer_key_changes_one_name_of_an_open_section():
    model = with_changes(ModelConfig(), {"variants": VARIANTS})
    changed = with_changes(model, {"variants.few.rope.theta": 7.0, "variants.new.heads": 1})
    assert changed.variants["few"] == {"heads": 2, "rope": {"theta": 7.0}}
    assert changed.variants["new"] == {"heads": 1} and changed.variants["wide"] == {"width": 64}
    assert with_changes(changed, {"variants": {}}).variants == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modl.width": 3}, "unknown key here.modl; did you mean 'model'"),
        (
            {"model.attention.head": 3},
            "unknown key here.model.attention.head; did you mean 'heads'",
        ),
        ({"model.vocab": 64}, "unknown key here.model.vocab; it is now 'model.vocab_size'"),
        (
            {"model.width.x": 64},
            "unknown key here.model.width.x; here.model.width is not a section",
        ),
        ({"model": 64}, "here.model is 64, must be a section"),
        ({"model.width": "a"}, r"here.model.width is 'a' \(str\), must be an integer"),
        ({"model.width": 0}, "here.model.width is 0, must be >= 1"),
        (
            {"model.mlp": {"gated": False}, "model.mlp.width": 64},
            "both here.model.mlp and here.model.mlp.width; remove one",
        ),
    ],
)
def test_what_is_not_a_setting_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        with_changes(Settings(), changes, "here")
