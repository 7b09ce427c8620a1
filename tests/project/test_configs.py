"""Compares the settings of every shipped config with recorded ones, to detect unintended changes.

After an intended change, `python tests/project/test_configs.py` rewrites the recorded settings.
"""

import dataclasses
import functools
import json
from pathlib import Path

import pytest

from arch import compute_cost
from configs import SIZES
from data.settings import DataConfig
from errors import ConfigError
from objectives import OBJECTIVES
from settings.changes import with_changes
from settings.cli import load_config
from settings.tree import as_json, differences, freeze, from_json
from training.settings import Settings, resolve

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "goldens" / "configs.json"
SCALE = {path.stem for path in (ROOT / "configs" / "scale").glob("*.py")}
UNSIZED = {"quickstart", "contrastive", "chat", "preference", "image_text", "image_caption"}
UNSIZED |= {"llava", *SCALE}


def shipped() -> list[str]:
    """Returns `file` or `file:size` for every config."""
    files = sorted(p for p in (ROOT / "configs").rglob("*.py") if p.stem != "__init__")
    files = [
        p
        for p in files
        if p.parent.name not in ("compare", "reproduce", "families", "recent") and p.stem != "grid"
    ]
    names = [str(path.relative_to(ROOT)) for path in files]
    return [
        f"{name}:{size}" if size else name
        for name in names
        for size in ([""] if Path(name).stem in UNSIZED else SIZES)
    ]


@functools.cache
def load(name: str) -> Settings:
    return freeze(Settings, load_config(str(ROOT / name), Settings))


def read(name: str) -> dict:
    """Returns the settings of a config that differ from the defaults."""
    return {key: value for key, _, value in differences(Settings(), load(name))}


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_config_means_what_it_meant(name, golden):
    # covers C16
    assert json.loads(json.dumps(read(name))) == golden[name]


def test_no_golden_is_of_a_config_that_is_gone(golden):
    assert set(golden) == set(shipped())


def test_settings_of_another_version_are_refused_by_name():
    # covers C16
    old = as_json(Settings()) | {"learning_rate": 0.1}
    with pytest.raises(ConfigError, match="unknown key config.learning_rate"):
        from_json(Settings, old)


FAMILIES = sorted({n.split(":")[0] for n in shipped() if ":" in n})


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_what_they_are_called(name):
    """All architectures of a size have about as many active parameters; their depth adapts."""
    millions = {"tiny": 1, "small": 10, "base": 110, "large": 340}
    for size, expected in millions.items():
        settings = resolve(load(f"{name}:{size}"), 365)
        body = (
            compute_cost(settings.model, settings.train.seq_len).active_non_embedding_params / 1e6
        )
        assert 0.75 < body / expected < 1.25, (size, body)


# The objectives that an architecture cannot do as configured, with the error messages.
REFUSED = {
    "encdec": dict.fromkeys(
        ("causal_lm", "masked_lm", "contrastive", "preference"), "no input for an encoder"
    ),
    "a plain mamba1": dict.fromkeys(
        ("masked_lm", "contrastive"), "mamba1.*model.bidirectional.weights=shared"
    ),
    "a plain gated_conv": dict.fromkeys(
        ("masked_lm", "contrastive"), "gated_conv.*model.bidirectional.weights=shared"
    ),
    "experts that choose": {
        "causal_lm": "moe.*model.moe.routing=token",
        "denoising": "moe.*model.moe.routing=token",
        "preference": "moe.*model.moe.routing=token",
    },
}
PLAIN = {
    "a plain mamba1": {"layers": ("mamba1+mlp",)},
    "a plain gated_conv": {"layers": ("gated_conv+none",)},
    "experts that choose": {"layers": ("attention+moe",), "moe": {"routing": "expert"}},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", [*sorted({Path(f).stem for f in FAMILIES}), *PLAIN])
def test_every_architecture_takes_every_objective_that_it_can(name, objective):
    """Impossible combinations are refused before compilation, with a way out."""
    # covers C7 C8
    if name in PLAIN:
        supported = "masked_lm" if "causal_lm" in REFUSED[name] else "causal_lm"
        base = with_changes(Settings(), {"model": PLAIN[name], "objective": supported})
    else:
        file = next(file for file in FAMILIES if Path(file).stem == name)
        # Without the requirements of its data source.
        base = dataclasses.replace(load(f"{file}:tiny"), data=DataConfig())
    why = REFUSED.get(name, {}).get(objective)
    if why is None:
        assert with_changes(base, {"objective": objective}).row_spec.text_length > 0
        return
    with pytest.raises(ConfigError, match=why) as error:
        with_changes(base, {"objective": objective})
    assert objective in str(error.value)


if __name__ == "__main__":
    settings = {name: read(name) for name in shipped()}
    GOLDEN.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
