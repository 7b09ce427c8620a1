"""Tests of the messages that refuse mixers which do not fit: one line each, with a way out."""

import jax
import pytest
import tiny

from arch import MIXERS, ModelConfig
from arch.mixers.attention import AttentionConfig
from arch.mixers.delta_product import DeltaProductConfig
from arch.mixers.gdn2 import Gdn2Config
from arch.mixers.gla import GlaConfig
from arch.mixers.kda import KdaConfig
from arch.mixers.latent_attention import LatentAttentionConfig
from errors import ConfigError
from settings.changes import with_changes
from training.settings import Settings

WITH_HEADS = [name for name in MIXERS if hasattr(tiny.config().part_config(name), "heads")]
CAUSAL = [
    name
    for name, mixer in MIXERS.items()
    if "bidirectional" not in mixer.supported_views(tiny.config().part_config(name))
]


def refusal(make) -> str:
    """Returns the message with which `make()` is refused."""
    with pytest.raises((ConfigError, ValueError)) as error:
        make()
    message = str(error.value)
    assert "\n" not in message and len(message) < 250
    return message


@pytest.mark.parametrize("name", WITH_HEADS)
def test_heads_that_do_not_divide_the_width(name):
    part = type(ModelConfig().part_config(name))(heads=7)
    message = refusal(lambda: ModelConfig(width=100, layers=(f"{name}+mlp",), **{name: part}))
    section = "attention" if name == "local_attention" else name
    for fragment in ("model.width 100", f"{section}.heads 7", "nearest valid value"):
        assert fragment in message


@pytest.mark.parametrize(
    ("name", "setting", "make"),
    [
        ("latent_attention", "kv_rank", LatentAttentionConfig),
        ("latent_attention", "query_rank", LatentAttentionConfig),
        ("kda", "gate_rank", KdaConfig),
        ("gdn2", "gate_rank", Gdn2Config),
        ("gla", "gate_rank", GlaConfig),
    ],
)
def test_a_rank_above_the_width(name, setting, make):
    part = make(**{setting: 257})
    message = refusal(lambda: ModelConfig(width=256, layers=(f"{name}+mlp",), **{name: part}))
    assert message == f"{name}.{setting} 257 is above model.width 256; nearest valid value: 256"


def test_numbers_of_steps_and_blocks():
    message = refusal(lambda: DeltaProductConfig(householder_steps=0))
    assert "householder_steps is 0" in message and ">= 1" in message
    message = refusal(lambda: AttentionConfig(block_size=4, top_blocks=0))
    assert "top_blocks is 0" in message and ">= 1" in message
    message = refusal(lambda: AttentionConfig(block_size=4, window=8))
    assert "attention.block_size 4" in message and "set one of them to 0" in message


def test_states_of_other_capacities_side_by_side():
    """Two caches of one layer must hold as many tokens."""
    model = tiny.model(tiny.config("attention&latent_attention"))
    block = jax.tree.map(lambda a: a[0], model.stack.blocks[0])
    short, long = (block.mixer.init_state(1, size, "float32") for size in (4, 6))
    x, seq = jax.numpy.zeros((1, 2, tiny.WIDTH)), tiny.packed([2], 2)
    message = refusal(lambda: block.mixer(x, seq, state=(short[0], long[1])))
    assert "states for [4, 6] tokens" in message and "init_state(batch_size, max_length)" in message


@pytest.mark.parametrize("name", [*CAUSAL, "attention&gla"])
def test_an_objective_that_needs_a_view_which_the_mixer_lacks(name):
    changes = {"objective": "masked_lm", "model": {"layers": (f"{name}+mlp",)}}
    message = refusal(lambda: with_changes(Settings(), changes))
    assert "masked_lm reads the bidirectional view" in message and f"{name}+mlp" in message
    assert "set model.bidirectional.weights=shared" in message
    with_changes(
        Settings(), changes | {"model": changes["model"] | {"bidirectional": {"weights": "shared"}}}
    )
