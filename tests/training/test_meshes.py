"""Tests that every mesh trains as one device does, for ten steps of every architecture.

To add an architecture or a mesh, name it in the tables. The quick test is the first case, in which
all parameters are divided, and so are the iterations of Muon; all others are slow tests.
"""

import functools

import jax
import numpy as np
import pytest

from data.random_streams import RandomStream, philox
from errors import ConfigError
from objectives import DummyTokenizer
from settings.tree import freeze
from training import mesh as meshes
from training.program import make_program
from training.settings import Settings, resolve

STEPS, BATCH, LENGTH, VOCAB = 10, 8, 16, 128
REMATERIALISED = "Involuntary full rematerialization"

MOE = {"num_experts": 4, "top_k": 2, "width": 16}
MAMBA = {"state_size": 8, "head_dim": 8, "chunk_size": 4}
TWO_WAYS = {"bidirectional": {"weights": "shared"}}
ARCHITECTURES = {  # Objective and model settings by name.
    "dense": ("causal_lm", {}),
    "muon": ("causal_lm", {}),
    "ring": ("causal_lm", {"attention": {"implementation": "ring", "window": 9}}),
    "offload": ("causal_lm", {"remat": "offload"}),
    "moe": ("causal_lm", {"layers": ("attention+moe",), "moe": MOE}),
    "capacity": (
        "causal_lm",
        {"layers": ("attention+moe",), "moe": MOE | {"capacity_factor": 4.0}},
    ),
    "mamba2": ("causal_lm", {"layers": ("mamba2+none",), "mamba2": MAMBA}),
    "hybrid": (
        "causal_lm",
        {"layers": ("mamba2+mlp", "attention+moe"), "moe": MOE, "mamba2": MAMBA},
    ),
    "encoder-decoder": (
        "denoising",
        {"encoder": {"depth": 2}, "attention": {"position_encoding": "relative"}},
    ),
    "masked": (
        "masked_lm",
        {"layers": ("mamba2+mlp", "attention+mlp"), "mamba2": MAMBA} | TWO_WAYS,
    ),
    "contrastive": ("contrastive", {}),
    "contrastive hybrid": (
        "contrastive",
        {"layers": ("mamba2+none", "attention+moe"), "moe": MOE, "mamba2": MAMBA} | TWO_WAYS,
    ),
}
OPTIMIZERS = {"muon": {"name": "muon", "learning_rate": 1e-2}}
OBJECTIVES = {"contrastive": {"positives": "split_text", "temperature": 0.5}}
MESHES = {
    "fsdp": {"data": 8},
    "tp": {"data": 2, "model": 4},
    "ep": {"data": 2, "expert": 4},
    "cp": {"data": 2, "context": 4},
    "all": {"replica": 1, "data": 1, "context": 2, "expert": 2, "model": 2},
    "copies": {"replica": 2, "data": 2, "model": 2},
    "rows": {"data": 2, "context": 2, "expert": 2},
    "dense": {"data": 2, "context": 2, "model": 2},
}
TRIED = {  # The meshes of each architecture; the first case is a quick test.
    "muon": ("dense", "fsdp", "tp", "copies", "rows"),
    "dense": ("all", "fsdp", "tp", "cp", "copies"),
    "ring": ("cp", "dense"),
    "moe": ("ep", "all"),
    "capacity": ("ep",),
    "mamba2": ("fsdp", "tp", "cp"),
    "hybrid": ("fsdp", "all"),
    "encoder-decoder": ("tp", "cp", "all"),
    "masked": ("cp",),
    "contrastive": ("fsdp", "all"),
    "contrastive hybrid": ("cp",),
}


def settings(name: str) -> Settings:
    objective, model = ARCHITECTURES[name]
    model = {"width": 16, "depth": 2, "vocab_size": VOCAB, "remat": "full"} | model
    model["attention"] = {"heads": 4} | model.get("attention", {})
    changes = {
        "objective": objective,
        **({objective: OBJECTIVES[objective]} if objective in OBJECTIVES else {}),
        "model": model,
        "train": {"steps": STEPS, "batch_size": BATCH, "seq_len": LENGTH},
        "optimizer": {"warmup": 2} | OPTIMIZERS.get(name, {}),
    }
    return resolve(freeze(Settings, changes), VOCAB)


def batches(chosen: Settings) -> dict[str, np.ndarray]:
    """Returns arrays [steps, batch, ..] of the objective's rows, from random documents."""
    objective, spec = chosen.get_objective(), chosen.row_spec
    make_row, rows = objective.make_row_fn(chosen.model, LENGTH, DummyTokenizer()), []
    for i in range(STEPS * BATCH):
        rng = np.random.Generator(philox(0, i, RandomStream.EXAMPLES))
        cut = int(rng.integers(3, spec.text_length - 2))
        text = rng.integers(111, VOCAB, spec.text_length).astype(np.int32)
        rows.append(make_row([text[:cut], text[cut:]], spec.text_length, rng))
    arrays = {n: np.stack([row[n] for row in rows]) for n in rows[0]}
    return {n: a.reshape(STEPS, BATCH, *a.shape[1:]) for n, a in arrays.items()}


def losses(name: str, mesh) -> np.ndarray:
    """Returns the losses of ten steps of the compiled program on `mesh`."""
    program, sums = make_program(settings(name), mesh), []
    arrays = batches(program.settings)
    shardings = {name: shape.sharding for name, shape in program.abstract_batch.items()}
    with jax.set_mesh(mesh):
        state, step = program.init(), program.compile_train_step()
        for i in range(STEPS):
            batch = {name: rows[i] for name, rows in arrays.items()}
            state, metrics = step(state, jax.device_put(batch, shardings))
            sums.append(metrics["loss"].sum)
    # A leaf with another sharding would be compiled for again after a restart.
    places = jax.tree.map(
        lambda a, shape: a.sharding == shape.sharding, state, program.abstract_state
    )
    assert all(jax.tree.leaves(places))
    return np.array(sums)


@functools.cache
def losses_on_one_device(name: str) -> np.ndarray:
    return losses(name, meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param(
            *(name, sizes), marks=[] if (name, sizes) == ("muon", "dense") else pytest.mark.slow
        )
        for name, several in TRIED.items()
        for sizes in several
    ],
)
def test_ten_steps_on_any_mesh_are_those_of_one_device(name, sizes, capfd):
    expected = losses_on_one_device(name)
    assert expected[-1] < expected[0]
    capfd.readouterr()
    actual = losses(name, meshes.make_mesh(meshes.MeshConfig(**MESHES[sizes])))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert REMATERIALISED not in capfd.readouterr().err


@pytest.mark.slow
def test_what_is_kept_in_the_hosts_memory_is_the_same():
    actual = losses("offload", meshes.make_mesh(meshes.MeshConfig(data=8)))
    np.testing.assert_allclose(actual, losses_on_one_device("dense"), rtol=1e-5)


def test_the_rest_of_the_devices_goes_where_it_is_asked_for():
    # covers C10
    assert meshes.MeshConfig().shape(8) == (1, 8, 1, 1, 1)
    assert meshes.MeshConfig(data=2, model=-1).shape(8) == (1, 2, 1, 1, 4)
    for sizes, message in (
        ({"data": -1, "model": 3}, "does not fill 8 devices"),
        ({"data": 2, "model": 2}, "does not fill 8 devices; use --config.mesh.data=-1"),
        ({"model": -1}, "-1 more than once"),
        ({"context": 0}, "mesh.context is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            meshes.MeshConfig(**sizes).shape(8)


@pytest.mark.parametrize(
    ("sizes", "changes", "message"),
    [
        (
            {"context": 4},
            {"train": {"seq_len": 18}},
            "train.seq_len 18 .* mesh.context 4; nearest valid value: 16",
        ),
        ({}, {"train": {"batch_size": 12}}, "train.batch_size 12 .*= 8; nearest valid value: 8"),
        ({"model": 8}, {"model": {"attention": {"heads": 4}}}, "heads 4; choose one of 1, 2, 4"),
        (
            {"expert": 8},
            {"model": {"layers": ("attention+moe",), "moe": {"num_experts": 4}}},
            "mesh.expert 8 does not divide model.moe.num_experts 4; choose one of 1, 2, 4",
        ),
    ],
)
def test_what_a_mesh_cannot_cut_is_refused_with_what_it_can(sizes, changes, message):
    # covers C9
    chosen = resolve(freeze(Settings, changes), VOCAB)
    with pytest.raises(ConfigError, match=message):
        make_program(chosen, meshes.make_mesh(meshes.MeshConfig(**sizes)))
