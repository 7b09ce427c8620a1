"""Tests of a compiled program: its estimated memory and the batches that it accepts."""

import functools
import operator

import jax
import numpy as np
import pytest

from errors import DataError
from settings.tree import freeze
from training import mesh as meshes
from training.loop import to_device
from training.preflight import memory_estimate
from training.program import make_program
from training.settings import Settings, defaults, resolve


def make(sizes: dict | None = None, **changes):
    c = defaults()
    for key, value in changes.items():
        *sections, name = key.split("__")
        functools.reduce(operator.getitem, sections, c)[name] = value
    settings = resolve(freeze(Settings, c), 365)
    devices = None if sizes else jax.devices()[:1]
    return make_program(settings, meshes.make_mesh(meshes.MeshConfig(**(sizes or {})), devices))


ESTIMATED = [  # mesh, changed settings
    (None, {"model__width": 64, "train__batch_size": 16, "model__remat": "full"}),
    # The gathered weights are most of the memory.
    ({"data": 8}, {"model__width": 512, "model__depth": 2, "train__seq_len": 32}),
    (None, {"model__width": 128, "train__batch_size": 8}),
    (
        None,
        {"model__width": 256, "model__depth": 2, "train__batch_size": 4, "train__seq_len": 128},
    ),
    (None, {"model__depth": 8, "model__remat": "dots", "train__batch_size": 4}),
    ({"data": 8}, {"model__width": 128, "train__batch_size": 16}),
]


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if number > 1 else [])
        for number, case in enumerate(ESTIMATED)
    ],
)
def test_the_estimate_is_within_a_fifth_of_the_compiler(sizes, changes):
    program = make(sizes, **changes)
    estimated = sum(memory_estimate.estimate(program).values())
    compiled = sum(memory_estimate.compiled_memory(program.compile_step()).values())
    assert 0.8 < estimated / compiled < 1.2, (estimated / 2**20, compiled / 2**20)


def test_a_batch_of_another_shape_is_refused_not_compiled_for():
    # covers P13
    program = make(train__batch_size=8, model__width=16, model__depth=1)
    good = {name: np.zeros(s.shape, s.dtype) for name, s in program.abstract_batch.items()}
    assert to_device(program, 3, good).keys() == good.keys()
    with pytest.raises(DataError, match=r"the batch of step 3 is .*8, 128.* compiled for"):
        to_device(program, 3, {name: array[:, :128] for name, array in good.items()})
    with pytest.raises(DataError, match="step 4"):
        to_device(program, 4, {name: good[name] for name in list(good)[1:]})


def test_accumulation_divides_activations_and_sharding_divides_state():
    full, accumulated = (
        make(train__batch_size=16),
        make(train__batch_size=16, train__grad_accum_steps=4),
    )
    a, b = memory_estimate.estimate(full), memory_estimate.estimate(accumulated)
    assert b["activations"] * 3 < a["activations"] and a["parameters"] == b["parameters"]
    eight = memory_estimate.estimate(make({"data": 8}, train__batch_size=16))
    assert eight["parameters"] < a["parameters"] / 7
    copies = memory_estimate.estimate(make({"replica": 8}, train__batch_size=16))
    assert copies["parameters"] == a["parameters"]
