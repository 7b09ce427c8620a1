"""The roofline of a step: its terms by hand, published figures, and what it suggests."""

import jax
import pytest

from arch import compute_cost
from settings.changes import with_changes
from settings.cli import load_config
from settings.tree import freeze
from training import mesh as meshes
from training.preflight import roofline
from training.preflight.hlo_collectives import CollectiveTraffic
from training.preflight.roofline import CHIP_SPEEDS
from training.program import make_program
from training.settings import Settings, resolve


def make(config, vocab_size=1000, devices=None, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    settings = with_changes(freeze(Settings, load_config(config, Settings)), changes)
    settings = resolve(settings, vocab_size)
    return make_program(settings, meshes.make_mesh(settings.mesh, devices or jax.devices()[:1]))


@pytest.fixture(scope="module")
def dense():
    return make(
        "configs/dense.py:tiny", model__dtype="bfloat16", train__batch_size=4, train__seq_len=64
    )


def test_products_take_their_flops_by_the_sustained_peak(dense):
    model, speed = dense.settings.model, CHIP_SPEEDS["h100"]
    terms = compute_cost(model, 64).terms
    weights = sum(t.executed for n, t in terms.items() if not n.endswith(".core"))
    expected = (weights + terms["attention.core"].executed / 0.5) / (989e12 * 0.6)
    assert roofline.product_seconds(compute_cost(model, 64), speed, "bfloat16") == pytest.approx(
        expected
    )
    float32 = roofline.product_seconds(compute_cost(model, 64), speed, "float32")
    assert float32 == pytest.approx(15 * expected)
    step = roofline.estimate_step(dense, speed)
    assert step.products == pytest.approx(3 * expected * 4 * 64)
    assert step.collectives == 0
    assert step.seconds == step.products + step.memory


def test_products_of_experts_are_slower_than_plain_ones_and_faster_than_those_of_activations():
    model = make("configs/moe.py:tiny", model__dtype="bfloat16").settings.model
    terms = compute_cost(model, 64).terms
    rest = [t for n, t in terms.items() if not n.endswith((".core", ".routed"))]
    expected = sum(t.executed for t in rest) + terms["moe.routed"].executed / 0.85
    expected += terms["attention.core"].executed / 0.5
    seconds = roofline.product_seconds(compute_cost(model, 64), CHIP_SPEEDS["v5p"], "bfloat16")
    assert seconds == pytest.approx(expected / (459e12 * 0.9))


def test_model_flops_by_time_and_peak_are_the_utilization(dense):
    step = roofline.estimate_step(dense, CHIP_SPEEDS["v5p"])
    flops = 3 * compute_cost(dense.settings.model, 64).model_flops * 4 * 64
    assert step.mfu == pytest.approx(flops / step.seconds / 459e12)


def test_collectives_that_outlast_the_computation_are_the_step(dense):
    devices = jax.devices()[:8]
    program = make("configs/dense.py:tiny", devices=devices, train__batch_size=8, mesh__data=-1)
    sent = {"all-reduce": CollectiveTraffic(1, 2**40)}
    step = roofline.estimate_step(program, CHIP_SPEEDS["h100"], sent)
    assert step.seconds == step.collectives == pytest.approx(2 * 7 / 8 * 2**40 / 450e9)
    assert step.bottleneck == "collectives"
    kinds = roofline.mesh_traffic(program)
    assert {"all-gather", "reduce-scatter"} <= set(kinds)


def test_a_hybrid_is_faster_than_attention_at_long_rows_only(dense):
    speed = CHIP_SPEEDS["h100"]
    name, length = roofline.crossover(dense.settings.model, speed)
    assert "gated DeltaNet" in name and 128 < length <= 2**20
    hybrid = with_changes(
        dense.settings.model, {"layers": (*("gated_deltanet+mlp",) * 3, "attention+mlp")}
    )
    short, long = (
        [
            roofline.product_seconds(compute_cost(model, T), speed, "bfloat16")
            for model in (dense.settings.model, hybrid)
        ]
        for T in (length // 2, length)
    )
    assert short[0] <= short[1] and long[0] > long[1]


def test_the_faster_setting_is_one_that_fits():
    program = make("configs/dense.py:tiny", model__remat="full", train__grad_accum_steps=2)
    speed = CHIP_SPEEDS["v5e"]
    (key, value), seconds = roofline.faster_setting(program, speed, limit=2**40)
    assert (key, value) == ("model.dtype", "bfloat16")
    assert seconds < 0.95 * roofline.estimate_step(program, speed).seconds
    assert roofline.faster_setting(program, speed, limit=0) is None


# Tokens/s and device, or TFLOP/s with all of the attention counted: MaxText's table of optimized
# models (maxtext.readthedocs.io, reference/models/tiering), and NVIDIA's figure for 8 H100.
PUBLISHED = [  # config, chip, remat, rows of a device, tokens of a row, vocabulary, figure
    ("configs/families/llama2.py:7b", "h100", "none", 2, 4096, 32000, 492e12),
    ("configs/families/llama2.py:70b", "v5p", "full", 2, 4096, 32000, 692),
    ("configs/families/llama2.py:70b", "v6e", "full", 2, 4096, 32000, 900),
    ("configs/families/llama3.py:8b", "v6e", "full", 2, 8192, 128256, 7207),
    ("configs/families/mixtral.py:8x7b", "v5p", "full", 36, 4096, 32000, 2909),
    ("configs/families/mixtral.py:8x7b", "v6e", "full", 12, 4096, 32000, 3899),
]
MIXTRAL_CAPACITY = {"v5p": 0.0, "v6e": 1.25}  # as in the recipes; 0: no token is dropped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "chip", "remat", "rows", "length", "vocab", "figure"), PUBLISHED
)
def test_published_figures_are_within_15_percent(config, chip, remat, rows, length, vocab, figure):
    changes = {"model.dtype": "bfloat16", "model.remat": remat, "mesh.data": 8, "train.steps": 1}
    changes |= {"train.batch_size": 8 * rows, "train.seq_len": length}
    if "mixtral" in config:
        changes["model.moe.capacity_factor"] = MIXTRAL_CAPACITY[chip]
    program = make(config, vocab, jax.devices()[:8], **changes)
    step = roofline.estimate_step(program, CHIP_SPEEDS[chip])
    tokens = rows * length / step.seconds  # of a device
    if figure > 1e9:  # FLOP/s that count every pair of tokens in attention
        cost = compute_cost(program.settings.model, length)
        tokens *= 3 * (cost.model_flops + cost.terms["attention.core"].model)
    assert tokens == pytest.approx(figure, rel=0.15)
