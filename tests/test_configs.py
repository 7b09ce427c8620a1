"""Shipped configs keep their meaning: each is compared with the settings it resolved to before.

After a change that is meant: `python tests/test_configs.py` writes tests/goldens/configs.json anew.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from arch import cost
from configs import SIZES
from data import DataConfig
from errors import ConfigError
from objectives import OBJECTIVES
from schema import changed
from training.flags import as_json, from_json, load
from training.settings import Settings, resolved
from training.tree import differences, frozen

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "goldens" / "configs.json"
SCALE = {path.stem for path in (ROOT / "configs" / "scale").glob("*.py")}
UNSIZED = {"quickstart", "contrastive", "chat", *SCALE}


def shipped() -> list[str]:
    """`file` or `file:size` of every config."""
    files = sorted(p for p in (ROOT / "configs").rglob("*.py") if p.stem != "__init__")
    files = [
        p
        for p in files
        if p.parent.name not in ("compare", "reproduce", "families") and p.stem != "grid"
    ]
    names = [str(path.relative_to(ROOT)) for path in files]
    return [
        f"{name}:{size}" if size else name
        for name in names
        for size in ([""] if Path(name).stem in UNSIZED else SIZES)
    ]


def read(name: str) -> dict:
    """The settings of a config that are not defaults."""
    settings = frozen(Settings, load(str(ROOT / name), Settings))
    return {key: value for key, _, value in differences(Settings(), settings)}


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_config_means_what_it_meant(name):
    # covers C16
    golden = json.loads(GOLDEN.read_text())
    assert json.loads(json.dumps(read(name))) == golden[name]


def test_no_golden_is_of_a_config_that_is_gone():
    assert set(json.loads(GOLDEN.read_text())) == set(shipped())


def test_settings_of_another_version_are_refused_by_name():
    # covers C16
    old = as_json(Settings()) | {"learning_rate": 0.1}
    with pytest.raises(ConfigError, match="unknown key config.learning_rate"):
        from_json(Settings, old)


FAMILIES = sorted({n.split(":")[0] for n in shipped() if ":" in n})


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_what_they_are_called(name):
    """A token meets as many parameters in every architecture; the depth is what gives way."""
    millions = {"tiny": 1, "small": 10, "base": 110, "large": 340}
    for size, wanted in millions.items():
        settings = resolved(frozen(Settings, load(f"{ROOT}/{name}:{size}", Settings)), 365)
        body = cost(settings.model, settings.train.length).active_body_params / 1e6
        assert 0.75 < body / wanted < 1.25, (size, body)


# architecture: what it cannot do as it is configured, and the words that say why
REFUSED = {
    "encdec": {name: "no source" for name in ("causal_lm", "masked_lm", "contrastive")},
    "a plain mamba1": dict.fromkeys(
        ("masked_lm", "contrastive"), "mamba1.*model.directions.weights=shared"
    ),
    "a plain gated_conv": dict.fromkeys(
        ("masked_lm", "contrastive"), "gated_conv.*model.directions.weights=shared"
    ),
    "experts that choose": {
        "causal_lm": "moe.*model.moe.choice=token",
        "denoising": "moe.*model.moe.choice=token",
    },
}
PLAIN = {
    "a plain mamba1": {"layers": ("mamba1+mlp",)},
    "a plain gated_conv": {"layers": ("gated_conv+none",)},
    "experts that choose": {"layers": ("attention+moe",), "moe": {"choice": "expert"}},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", [*sorted({Path(f).stem for f in FAMILIES}), *PLAIN])
def test_every_architecture_takes_every_objective_that_it_can(name, objective):
    """The whole matrix; what cannot be is refused before anything is compiled, with a way out."""
    # covers C7 C8
    if name in PLAIN:
        able = "masked_lm" if "causal_lm" in REFUSED[name] else "causal_lm"
        base = changed(Settings(), {"model": PLAIN[name], "objective": able}, "config")
    else:
        folder = ROOT / "configs" / ("data" if name == "fineweb_edu" else "")
        base = frozen(Settings, load(f"{folder}/{name}.py:tiny", Settings))
        base = dataclasses.replace(base, data=DataConfig())  # what a source has is another matter
    why = REFUSED.get(name, {}).get(objective)
    if why is None:
        assert changed(base, {"objective": objective}, "config").rows.text > 0
        return
    with pytest.raises(ConfigError, match=why) as error:
        changed(base, {"objective": objective}, "config")
    assert objective in str(error.value)


if __name__ == "__main__":
    found = {name: read(name) for name in shipped()}
    GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
