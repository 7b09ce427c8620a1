"""The budget solver on every shipped architecture, against counts made by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from arch.mixers.attention import AttentionConfig
from arch.mixers.mamba2 import Mamba2Config
from configs import apply_size
from errors import ConfigError
from protocol.study.budget import (
    compute_run_costs,
    match_as_is,
    match_by_size,
    match_by_steps,
    match_isoflop,
)
from settings.changes import with_changes
from settings.cli import load_config
from settings.tree import freeze
from training.settings import Settings, defaults, resolve

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("dense", "moe", "mamba1", "mamba2", "deltanet", "lstm", "gated_conv", "hybrid")
VOCAB = 365


def read(name, size="tiny"):
    return resolve(freeze(Settings, load_config(f"{CONFIGS}/{name}.py:{size}", Settings)), VOCAB)


@pytest.fixture(scope="module")
def tiny():
    return {name: read(name) for name in NAMES}


def dense_flops(D, L, F, T):
    """Forward, per token: projections, causal core, gated MLP; head."""
    return L * (8 * D * D + 4 * D * (T + 1) / 2 + 6 * D * F) + 2 * D * VOCAB


def test_measures_are_those_of_a_whole_run(tiny):
    found = compute_run_costs(tiny["dense"], step_seconds=0.5)
    tokens = 1000 * 16 * 256
    assert found.tokens == tokens
    assert found.training_flops == 3 * tokens * dense_flops(128, 5, 384, 256)
    assert found.non_embedding_flops == found.training_flops - 3 * tokens * 2 * 128 * VOCAB
    assert found.wall_clock == 500
    assert found.head_share == pytest.approx(2 * 128 * VOCAB / dense_flops(128, 5, 384, 256))
    assert found.state_bytes == 5 * 2 * 128 * 256 * 4


def test_all_architectures_meet_the_flops_of_the_coarsest(tiny):
    """Mamba-2 without an MLP has no fine knob, so the others come to it."""
    found = {m.name: m for m in match_by_size(tiny, reference="mamba2")}
    assert set(found) == set(NAMES)
    goal = compute_run_costs(tiny["mamba2"]).training_flops
    for name, m in found.items():
        assert abs(compute_run_costs(m.settings).training_flops / goal - 1) <= 0.01
        assert m.cost_ratios["training_flops"] == pytest.approx(1 + m.residual)
        assert m.cost_ratios["tokens"] == 1
        assert m.settings.train == tiny[name].train
        assert m.settings.model.layers == tiny[name].model.layers
    assert found["mamba2"].settings == tiny["mamba2"] and not found["mamba2"].changed_settings
    F = found["dense"].settings.model.mlp.width
    assert F % 8 == 0 and found["dense"].changed_settings == {"model.mlp.width": (0, F)}
    assert dense_flops(128, 5, F, 256) * 3 * 4_096_000 == pytest.approx(goal, rel=0.01)
    assert found["moe"].cost_ratios["params"] > 2 * found["moe"].cost_ratios["active_params"]
    assert found["hybrid"].cost_ratios["state_bytes"] < 1


def test_candidates_meet_the_flops_of_a_generated_token(tiny):
    """Attention reads its whole context for the last token of a row: 4 D T in place of half."""
    assert compute_run_costs(tiny["dense"]).decode == dense_flops(128, 5, 384, 2 * 256 - 1)
    some = {name: tiny[name] for name in ("dense", "hybrid")}
    found = match_by_size(some, "decode", reference="dense")[1]
    goal = dense_flops(128, 5, 384, 2 * 256 - 1)
    assert compute_run_costs(found.settings).decode == pytest.approx(goal, rel=0.01)
    assert found.changed_settings and found.cost_ratios["training_flops"] > 1.01
    # A mixer with a state of fixed size costs the same after any context.
    cost = compute_run_costs(tiny["mamba2"])
    assert cost.decode == pytest.approx(cost.training_flops / cost.tokens / 3)


@pytest.mark.parametrize("axis", ["params", "active_params"])
def test_parameters_are_an_axis_too(tiny, axis):
    names = ("dense", "deltanet", "lstm", "gated_conv", "hybrid")
    some = {name: tiny[name] for name in names}
    for m in match_by_size(some, axis, reference="dense"):
        assert abs(m.cost_ratios[axis] - 1) <= 0.01
        assert m.settings.model.depth == tiny[m.name].model.depth
    goal = compute_run_costs(tiny["dense"]).active_params
    moe = match_by_size(
        {"dense": tiny["dense"], "moe": tiny["moe"]}, axis, reference="dense", shapes=("aspect",)
    )[1]
    assert moe.costs._asdict()[axis] == pytest.approx(goal, rel=0.01)


def test_state_moves_width_and_depth(tiny):
    some = {"dense": tiny["dense"], "mamba1": tiny["mamba1"]}
    found = match_by_size(some, "state_bytes", reference="dense")[1]
    model = found.settings.model
    state = model.depth * (4 * 2 * model.width * 16 + 4 * 3 * 2 * model.width)
    assert state == pytest.approx(compute_run_costs(tiny["dense"]).state_bytes, rel=0.01)
    assert 0.5 <= (model.width / model.depth) / (128 / 9) <= 2


def test_a_size_out_of_reach_is_refused_with_the_nearest(tiny):
    some = {"dense": tiny["dense"], "mamba2": tiny["mamba2"]}
    with pytest.raises(ConfigError, match=r"^mamba2: .*within 1.00%; nearest: .*\+2.70%, width 96"):
        match_by_size(some, reference="dense")
    assert abs(match_by_size(some, reference="dense", tolerance=0.03)[1].residual - 0.027) < 1e-3
    double = {"dense": tiny["dense"], "big": read("dense", "small")}
    double["big"] = replace(double["big"], train=tiny["dense"].train)
    with pytest.raises(ConfigError, match="let width and depth change"):
        match_by_size(double, reference="dense", shapes=("fixed",))


def test_the_aspect_rule_moves_to_another_scale(tiny):
    small = read("dense", "small")
    some = {"dense": replace(small, train=tiny["dense"].train), "hybrid": tiny["hybrid"]}
    found = match_by_size(some, reference="dense", shapes=("aspect",))[1]
    model = found.settings.model
    assert abs(found.residual) <= 0.01
    assert model.depth % 4 == 0  # three Mamba-2 blocks to one of attention
    assert model.width / model.attention.heads == 32  # heads keep their width
    assert 0.5 <= (model.width / model.depth) / (128 / 4) <= 2
    assert model.mlp.width % 8 == 0 and 1.5 < model.mlp.width / model.width < 6


def test_a_study_declares_the_knob(tiny):
    """Only the declared setting changes, and a knob that is not one is refused by name."""
    some = {name: tiny[name] for name in ("dense", "mamba2", "lstm")}
    knobs = {"lstm": "model.lstm.width", "mamba2": "model.mamba2.state_size"}
    matched = {
        m.name: m for m in match_by_size(some, reference="dense", knobs=knobs, tolerance=0.05)
    }
    assert matched["lstm"].changed_settings.keys() == {"model.lstm.width"}
    assert matched["mamba2"].changed_settings.keys() == {"model.mamba2.state_size"}
    for knob, message in (
        ("model.lstm.width", "dense: .*no knob 'model.lstm.width'; did you mean 'model.mlp.width'"),
        ("model.attention.heads", "no knob 'model.attention.heads'"),
    ):
        with pytest.raises(ConfigError, match=message):
            match_by_size(tiny, reference="mamba2", knobs={"dense": knob})
    with pytest.raises(ConfigError, match="'model.mlp.width' does not change the cost"):
        match_by_size(
            {name: tiny[name] for name in ("dense", "hybrid")},
            *("state_bytes",),
            reference="dense",
            knobs={"hybrid": "model.mlp.width"},
        )
    with pytest.raises(ConfigError, match="name another knob"):
        match_by_size(some, reference="dense", knobs=knobs, tolerance=1e-9)


def test_variants_follow_the_size_and_a_part_that_declares_nothing_is_refused(tiny, monkeypatch):
    variants = {"few": {"heads": 2}, "wide": {"width": 512}}
    changes = {"layers": ("attention@few+mlp@wide", "attention+mlp"), "variants": variants}
    mixed = with_changes(tiny["dense"], {"model": changes})
    small = read("dense", "small")
    some = {"dense": replace(small, train=mixed.train), "mixed": mixed}
    model = match_by_size(some, reference="dense", shapes=("aspect",))[1].settings.model
    assert model.width > 128
    assert model.attention.heads == 2 * model.variants["few"]["heads"] == model.width // 32
    assert 1.25 < model.variants["wide"]["width"] / model.mlp.width < 1.4  # of 512 / 384
    monkeypatch.delattr(AttentionConfig, "knob_fields")
    with pytest.raises(ConfigError, match="AttentionConfig declares no scaled_fields"):
        match_by_size(some, reference="dense", shapes=("aspect",))
    with pytest.raises(ConfigError, match="AttentionConfig declares no scaled_fields"):
        read("dense", "small")


def test_a_size_whose_default_is_a_number_is_refused_unless_it_is_assigned(monkeypatch):
    monkeypatch.setattr(Mamba2Config, "scaled_fields", ("state_size",))
    with pytest.raises(ConfigError, match="model.mamba2.state_size is 128 at every size; assign"):
        read("mamba2")
    c = defaults()
    c.model.layers, c.model.mamba2.state_size = ("mamba2+none",), 64
    apply_size(c, "tiny")
    assert c.model.width == 128 and c.model.mamba2.state_size == 64


def test_larger_widths_come_in_larger_multiples():
    dense = read("dense", "base")
    wide = replace(dense, model=replace(dense.model, mlp=replace(dense.model.mlp, width=2240)))
    found = match_by_size({"wide": wide, "dense": dense}, reference="wide")[1]
    assert found.settings.model.mlp.width in (2176, 2240, 2304)  # of 64


def test_steps_are_solved_at_the_same_size(tiny):
    found = {m.name: m for m in match_by_steps(tiny, reference="dense")}
    goal = compute_run_costs(tiny["dense"]).training_flops
    for name, m in found.items():
        assert m.settings.model == tiny[name].model
        assert abs(m.costs.training_flops / goal - 1) <= 0.01
        assert m.settings.optimizer.warmup == 0.02  # of the steps, whatever their number is
    ratio = compute_run_costs(tiny["mamba2"]).training_flops / goal
    assert found["mamba2"].settings.train.steps == round(1000 / ratio)
    assert found["mamba2"].cost_ratios["tokens"] == pytest.approx(1 / ratio, rel=1e-3)


def test_tokens_and_seconds_are_axes_of_steps(tiny):
    some = {name: tiny[name] for name in ("dense", "moe")}
    some["moe"] = replace(some["moe"], train=replace(some["moe"].train, batch_size=8))
    assert match_by_steps(some, "tokens", reference="dense")[1].settings.train.steps == 2000
    found = match_by_steps(
        some, "wall_clock", reference="dense", step_seconds={"dense": 0.1, "moe": 0.4}
    )[1]
    assert found.settings.train.steps == 250
    assert found.costs.wall_clock == 100 and found.cost_ratios["wall_clock"] == 1


def test_what_is_said_to_cost_the_same_is_left_as_it_is_or_refused(tiny):
    same = {name: tiny["dense"] for name in ("a", "b")}
    for one in match_as_is(same, reference="a"):
        assert one.settings == tiny["dense"] and one.residual == 0 and not one.changed_settings
    longer = replace(tiny["dense"], train=replace(tiny["dense"].train, steps=2000))
    steps = tiny["dense"].train.steps
    more = f"{2000 / steps - 1:+.2%}".replace("+", r"\+")
    with pytest.raises(
        ConfigError, match=f"b has training_flops .*, {more} from a, must be within"
    ):
        match_as_is(same | {"b": longer}, reference="a")
    assert match_as_is(same | {"b": longer}, "params", reference="a")[1].settings is longer
    with pytest.raises(ConfigError, match="wall_clock is unknown before"):
        match_as_is(same, "wall_clock", reference="a")


def test_isoflop_runs_spread_around_the_likely_best(tiny):
    some = {name: tiny[name] for name in ("dense", "mamba1")}
    budgets = [1e14, 3e14, 1e15]
    found = match_isoflop(some, budgets)
    assert len(found) == 2 * 3 * 6
    for m in found:
        assert abs(m.costs.training_flops / m.budget - 1) <= 0.01
        assert m.settings.optimizer.warmup < m.settings.train.steps
    for name in some:
        for budget in budgets:
            runs = [m for m in found if m.name == name and m.budget == budget]
            bodies = [m.costs.non_embedding_params for m in runs]
            assert bodies == sorted(set(bodies))
            best = math.sqrt(budget / 120)
            assert bodies[0] == pytest.approx(best / 4, rel=0.16)
            assert bodies[2] < best < bodies[3]
            assert bodies[5] == pytest.approx(best * 4, rel=0.16)
    twice = match_isoflop(some, budgets, tokens_per_param={"mamba1": 80.0})  # half the size
    half = {m.name: m.costs.non_embedding_params for m in twice if m.budget == 1e15}
    whole = {m.name: m.costs.non_embedding_params for m in found if m.budget == 1e15}
    assert half["mamba1"] / whole["mamba1"] == pytest.approx(0.5, rel=0.3)
    assert half["dense"] == whole["dense"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda c: match_by_size(c, "tokens", reference="dense"),
            "'tokens' is not matched by size",
        ),
        (lambda c: match_by_size(c, reference="dens"), "did you mean 'dense'"),
        (
            lambda c: match_by_steps(c, "params", reference="dense"),
            "'params' is not matched by steps",
        ),
        (
            lambda c: match_by_steps(
                c, "wall_clock", reference="dense", step_seconds={"dense": 1.0}
            ),
            "measured seconds per step of moe",
        ),
        (lambda c: match_isoflop(c, [1e15, 2e15]), "2 budgets of 6 sizes"),
        (
            lambda c: match_isoflop(c, [1e15, 2e15, 3e15], n_sizes=5),
            "3 budgets of 5 sizes, must be at least 3 of 6",
        ),
        (
            lambda c: match_by_steps(
                {
                    n: replace(s, train=replace(s.train, steps=4 + 9 * (n == "moe")))
                    for n, s in c.items()
                },
                "wall_clock",
                reference="dense",
                step_seconds={"dense": 1.0, "moe": 0.77},
            ),
            "moe: wall_clock 4 is not reached within 1.00% by whole steps; nearest: 3.85",
        ),
        (
            lambda c: match_by_size(
                c | {"moe": replace(c["moe"], train=replace(c["moe"].train, batch_size=8))},
                reference="dense",
            ),
            "train.batch_size differs",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused(tiny, call, message):
    settings = {
        name: replace(tiny[name], optimizer=replace(tiny[name].optimizer, warmup=0))
        for name in ("dense", "moe")
    }
    with pytest.raises(ConfigError, match=message):
        call(settings)
