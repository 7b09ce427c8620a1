"""Every mesh trains as one device does: ten steps of every architecture, in one program each.

To add an architecture or a mesh, name it in the tables; those not named as quick are slow tests.
"""

import functools

import jax
import numpy as np
import pytest

from data.loader import philox
from errors import ConfigError
from objectives import Blank
from training import mesh as meshes
from training.program import program
from training.settings import Settings, resolved
from training.tree import frozen

STEPS, BATCH, LENGTH, VOCAB = 10, 8, 16, 128
REMATERIALISED = "Involuntary full rematerialization"

MOE = {"experts": 4, "top_k": 2, "width": 16}
MAMBA = {"state": 8, "head_width": 8, "chunk": 4}
TWO_WAYS = {"directions": {"weights": "shared"}}
ARCHITECTURES = {  # name: objective, model
    "dense": ("causal_lm", {}),
    "offload": ("causal_lm", {"remat": "offload"}),
    "moe": ("causal_lm", {"layers": ("attention+moe",), "moe": MOE}),
    "capacity": ("causal_lm", {"layers": ("attention+moe",), "moe": MOE | {"capacity": 4.0}}),
    "mamba2": ("causal_lm", {"layers": ("mamba2+none",), "mamba2": MAMBA}),
    "hybrid": (
        "causal_lm",
        {"layers": ("mamba2+mlp", "attention+moe"), "moe": MOE, "mamba2": MAMBA},
    ),
    "encoder-decoder": (
        "denoising",
        {"encoder": {"depth": 2}, "attention": {"position": "relative"}},
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
OBJECTIVES = {"contrastive": {"positives": "halves", "temperature": 0.5}}
MESHES = {
    "fsdp": {"data": 8},
    "tp": {"data": 2, "model": 4},
    "ep": {"data": 2, "expert": 4},
    "cp": {"data": 2, "context": 4},
    "all": {"replica": 1, "data": 1, "context": 2, "expert": 2, "model": 2},
    "copies": {"replica": 2, "data": 2, "model": 2},
}
TRIED = {  # architecture: meshes; the first of the first is quick
    "dense": ("all", "fsdp", "tp", "cp", "copies"),
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
    model = {"width": 16, "depth": 2, "vocab": VOCAB, "remat": "full"} | model
    model["attention"] = {"heads": 4} | model.get("attention", {})
    changes = {
        "objective": objective,
        **({objective: OBJECTIVES[objective]} if objective in OBJECTIVES else {}),
        "model": model,
        "train": {"steps": STEPS, "batch": BATCH, "length": LENGTH},
        "optimizer": {"warmup": 2},
    }
    return resolved(frozen(Settings, changes), VOCAB)


def batches(chosen: Settings) -> dict[str, np.ndarray]:
    """[steps, batch, ..] of what the objective makes of random documents, several a row."""
    objective, rows = chosen.chosen(), chosen.rows
    example, out = objective.host(chosen.model, LENGTH, Blank()), []
    for i in range(STEPS * BATCH):
        rng = np.random.Generator(philox(0, i, 7))
        cut = int(rng.integers(3, rows.text - 2))
        text = rng.integers(111, VOCAB, rows.text).astype(np.int32)
        out.append(example([text[:cut], text[cut:]], rows.text, rng))
    rows = {n: np.stack([row[n] for row in out]) for n in out[0]}
    return {n: a.reshape(STEPS, BATCH, *a.shape[1:]) for n, a in rows.items()}


def losses(name: str, mesh) -> np.ndarray:
    """Of ten steps on `mesh`, by one scan of the real step."""
    chosen = settings(name)
    made = program(chosen, mesh)
    arrays = batches(chosen)

    def run(state, arrays):
        def one(state, batch):
            state, metrics = made.step(state, batch)
            return state, metrics["loss"].sum

        return jax.lax.scan(one, state, arrays)[1]

    with jax.set_mesh(mesh):
        place = {
            n: jax.NamedSharding(mesh, jax.P(None, *s.sharding.spec)) for n, s in made.batch.items()
        }
        return np.asarray(jax.jit(run)(made.init(), jax.device_put(arrays, place)))


@functools.cache
def alone(name: str) -> np.ndarray:
    return losses(name, meshes.build(meshes.MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param(
            *(name, sizes), marks=[] if (name, sizes) == ("dense", "all") else pytest.mark.slow
        )
        for name, several in TRIED.items()
        for sizes in several
    ],
)
def test_ten_steps_on_any_mesh_are_those_of_one_device(name, sizes, capfd):
    wanted = alone(name)
    assert wanted[-1] < wanted[0]
    capfd.readouterr()
    found = losses(name, meshes.build(meshes.MeshConfig(**MESHES[sizes])))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert REMATERIALISED not in capfd.readouterr().err


@pytest.mark.slow
def test_what_is_kept_in_the_hosts_memory_is_the_same():
    found = losses("offload", meshes.build(meshes.MeshConfig(data=8)))
    np.testing.assert_allclose(found, alone("dense"), rtol=1e-5)


def test_the_rest_of_the_devices_goes_where_it_is_asked_for():
    # covers C10
    assert meshes.MeshConfig().shape(8) == (1, 8, 1, 1, 1)
    assert meshes.MeshConfig(data=2, model=-1).shape(8) == (1, 2, 1, 1, 4)
    for sizes, said in (
        ({"data": -1, "model": 3}, "does not fill 8 devices"),
        ({"data": 2, "model": 2}, "does not fill 8 devices; use --config.mesh.data=-1"),
        ({"model": -1}, "-1 more than once"),
        ({"context": 0}, "mesh.context is 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            meshes.MeshConfig(**sizes).shape(8)


@pytest.mark.parametrize(
    ("sizes", "changes", "said"),
    [
        (
            {"context": 4},
            {"train": {"length": 18}},
            "train.length 18 .* mesh.context 4; nearest: 16",
        ),
        ({}, {"train": {"batch": 12}}, "train.batch 12 .*= 8; nearest: 8"),
        ({"model": 8}, {"model": {"attention": {"heads": 4}}}, "heads 4; choose one of 1, 2, 4"),
        (
            {"expert": 8},
            {"model": {"layers": ("attention+moe",), "moe": {"experts": 4}}},
            "mesh.expert 8 does not divide model.moe.experts 4; choose one of 1, 2, 4",
        ),
    ],
)
def test_what_a_mesh_cannot_cut_is_refused_with_what_it_can(sizes, changes, said):
    # covers C9
    chosen = resolved(frozen(Settings, changes), VOCAB)
    with pytest.raises(ConfigError, match=said):
        program(chosen, meshes.build(meshes.MeshConfig(**sizes)))
