"""What is said of a run before it starts: memory, and how its compile time grows."""

import jax
import numpy as np
import pytest

from errors import DataError
from training import memory
from training import mesh as meshes
from training.loop import placed
from training.program import program
from training.settings import Settings, defaults, resolved
from training.tree import frozen


def made(sizes: dict | None = None, **changes):
    c = defaults()
    for key, value in changes.items():
        section, name = key.split("__")
        c[section][name] = value
    settings = resolved(frozen(Settings, c), 365)
    devices = None if sizes else jax.devices()[:1]
    return program(settings, meshes.build(meshes.MeshConfig(**(sizes or {})), devices))


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        (None, {"model__width": 128, "train__batch": 8}),
        (None, {"model__width": 64, "train__batch": 16, "model__remat": "full"}),
        (None, {"model__width": 256, "model__depth": 2, "train__batch": 4, "train__length": 128}),
        (None, {"model__depth": 8, "model__remat": "dots", "train__batch": 4}),
        ({"data": 8}, {"model__width": 128, "train__batch": 16}),
        # What is gathered of the weights is most of it.
        ({"data": 8}, {"model__width": 512, "model__depth": 2, "train__length": 32}),
    ],
)
def test_the_estimate_is_within_a_fifth_of_the_compiler(sizes, changes):
    one = made(sizes, **changes)
    guess = sum(memory.estimate(one).values())
    truth = sum(memory.measured(one.compiled()).values())
    assert 0.8 < guess / truth < 1.2, (guess / 2**20, truth / 2**20)


def test_a_batch_of_another_shape_is_refused_not_compiled_for():
    # covers P13
    one = made(train__batch=8, model__width=16, model__depth=1)
    good = {name: np.zeros(s.shape, s.dtype) for name, s in one.batch.items()}
    assert placed(one, 3, good).keys() == good.keys()
    with pytest.raises(DataError, match=r"the batch of step 3 is .*8, 128.* compiled for"):
        placed(one, 3, {name: array[:, :128] for name, array in good.items()})
    with pytest.raises(DataError, match="step 4"):
        placed(one, 4, {name: good[name] for name in list(good)[1:]})


def test_accumulation_divides_activations_and_sharding_divides_state():
    whole, parts = made(train__batch=16), made(train__batch=16, train__accumulate=4)
    a, b = memory.estimate(whole), memory.estimate(parts)
    assert b["activations"] * 3 < a["activations"] and a["parameters"] == b["parameters"]
    eight = memory.estimate(made({"data": 8}, train__batch=16))
    assert eight["parameters"] < a["parameters"] / 7
    copies = memory.estimate(made({"replica": 8}, train__batch=16))
    assert copies["parameters"] == a["parameters"]
