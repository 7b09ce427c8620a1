"""Coordinate checks and searches for rates over widths, on made-up sizes and on tiny models."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_runs
from scipy import stats

from arch import MIXERS
from errors import ConfigError, DataError
from protocol.board.figures import save_figures
from protocol.coordinates import __main__ as coordinates_command
from protocol.coordinates.figures import iter_figures as coordinate_figures
from protocol.coordinates.measure import (
    CoordinateCheck,
    check_coordinates,
    parse_widths,
    short_settings,
    slope_error,
)
from protocol.transfer import __main__ as transfer_command
from protocol.transfer.figures import iter_figures as rate_figures
from protocol.transfer.search import (
    RateSearch,
    RateTrial,
    describe,
    rate_grid,
    search_rates,
    to_json,
)
from settings.changes import with_changes
from training.run.cli_errors import run_command
from training.settings import Settings

ROOT = Path(__file__).parents[2]
WIDTHS = (32, 64, 128)
# Recorded slopes that are not below 0.1, which docs/laws.md explains.
STEEPEST = {
    "gated_deltanet mup": 0.12,
    "delta_product mup": 0.18,
    "gated_conv mup": 0.13,
    "moe mup": 0.12,
}


def made_check(**slopes):
    """Returns a check whose taps are powers of the width after the second of two steps."""
    sizes = np.array(WIDTHS, float)
    taps = {
        name: np.stack([np.ones(3), np.ones(3), 0.7 * sizes**slope], axis=1)
        for name, slope in slopes.items()
    }
    return CoordinateCheck(
        ("attention+mlp",), "mup", 1e-3, 2, WIDTHS, taps, {name: 0.02 for name in taps}
    )


def test_a_slope_is_the_power_of_the_width():
    check = made_check(a=0.05, b=-0.3)
    assert check.slopes() == pytest.approx({"a": 0.05, "b": -0.3})
    assert check.slopes(1) == pytest.approx({"a": 0.0, "b": 0.0})
    assert check.steepest() == ("b", pytest.approx(-0.3))
    assert (
        "1 of 2 taps have a slope above 0.1; the steepest is -0.300 (standard error over seeds "
        "0.020), of b" in check.describe()[-1]
    )
    assert "no tap has a slope above 0.1" in made_check(a=0.05).describe()[-1]
    assert check.to_json()["taps"]["b"]["slope"] == pytest.approx(-0.3)


def test_a_tap_that_vanishes_or_explodes_has_no_finite_slope():
    check = made_check(a=0.0)
    check.taps["a"][1, -1] = 0.0
    assert check.slopes()["a"] == math.inf
    check.taps["a"][1, -1] = math.nan
    assert check.slopes()["a"] == math.inf


def test_the_error_of_a_slope_is_that_of_the_mean_of_seeds():
    columns = [[[{"a": width ** (2 * slope)}] for slope in (0.1, 0.2, 0.3)] for width in WIDTHS]
    assert slope_error(WIDTHS, columns, "a") == pytest.approx(0.1 / math.sqrt(3))


def test_short_settings_follow_the_width_and_unroll_whole_repeats():
    model = tiny.config(depth=8, layers=("attention+mlp", "mamba2+none"), scan=True)
    model = dataclasses.replace(model, mlp=dataclasses.replace(model.mlp, width=24))
    short = short_settings(Settings(model=model), 2 * tiny.WIDTH, 3, 5)
    assert (short.model.width, short.model.attention.heads, short.model.mlp.width) == (32, 8, 48)
    assert (short.model.depth, short.model.scan) == (4, False)
    assert (short.train.steps, short.seed, short.optimizer.schedule) == (3, 5, "constant")


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ConfigError, match="--widths has 1 widths, must be 2 or more"):
        check_coordinates(Settings(model=tiny.config()), None, [32, 32], 1, 1)
    settings = Settings(model=tiny.config(), objective="contrastive")
    with pytest.raises(ConfigError, match="'contrastive' does not read packed rows"):
        check_coordinates(settings, None, [16, 32], 1, 1)
    with pytest.raises(ConfigError, match="--rates is 4, must be an odd number of 3 or more"):
        search_rates(Settings(model=tiny.config()), None, [16], 4, 1)
    assert run_command(coordinates_command.run, ["--widths=32,x"]) == 2
    with pytest.raises(ConfigError, match="--widths is empty, must be whole numbers"):
        parse_widths([])


def made_search(optimum_of, rates=7, seeds=1):
    """Returns a search with parabolas in log rate as losses, with minima at `optimum_of(width)`."""
    trials = [
        RateTrial(width, rate, seed, 2 + seed + math.log(rate / optimum_of(width)) ** 2)
        for width in WIDTHS
        for rate in rate_grid(1e-2, rates)
        for seed in range(seeds)
    ]
    return RateSearch(("attention+mlp",), "mup", 100, tuple(trials))


def test_pictures_have_plain_numbers_at_their_ticks(tmp_path):
    """Mathematical notation would be shown as it is written, with dollars and braces."""
    pictures = [*coordinate_figures(made_check(a=0.05, b=-0.3))]
    pictures += rate_figures(made_search(lambda width: 1.1e-2))
    paths = [path for path in save_figures(iter(pictures), tmp_path) if path.suffix == ".svg"]
    assert len(paths) == 2
    for path in paths:
        assert "mathdefault" not in path.read_text("utf-8"), path


def test_the_best_rates_of_widths_are_compared():
    grid = rate_grid(1e-2, 7)
    assert np.diff(np.log2(grid)) == pytest.approx([0.5] * 6) and grid[3] == 1e-2
    near = made_search(lambda width: 1.1e-2, seeds=2)
    assert [near.best_rate(width) for width in WIDTHS] == [1e-2] * 3
    assert near.parabola(64).minimum == pytest.approx(1.1e-2) and near.interval(64) is None
    assert near.losses(32)[grid[3]] == pytest.approx(2.5 + math.log(1.1) ** 2)
    assert "by a factor of 1: the rate has no verdict with 2 of 3 --seeds" in describe(near)[-1]
    assert "the rate transfers" in describe(made_search(lambda width: 1.1e-2, seeds=3))[-1]
    far = made_search(lambda width: 1e-2 * 64 / width, seeds=3)
    assert far.spread() == pytest.approx(4)
    assert "does not transfer" in describe(far)[-1]
    assert far.excess_losses() == pytest.approx(
        {32: 0, 64: math.log(2) ** 2, 128: math.log(4) ** 2}
    )


def test_the_interval_of_a_minimum_is_that_of_the_mean_log_rate_of_seeds():
    """The mean of parabolas of equal curvature has its minimum at the mean of theirs."""
    minima = np.array([8e-3, 1.3e-2, 1e-2, 1.1e-2])
    trials = [
        RateTrial(32, rate, seed, 2 + math.log(rate / minimum) ** 2)
        for rate in rate_grid(1e-2, 7)
        for seed, minimum in enumerate(minima)
    ]
    search = RateSearch(("attention+mlp",), "mup", 100, tuple(trials))
    mean, error = np.log(minima).mean(), np.log(minima).std(ddof=1) / 2
    expected = np.exp(mean + np.array([-1, 1]) * stats.t.ppf(0.975, 3) * error)
    assert search.parabola(32).minimum == pytest.approx(np.exp(mean))
    assert "nats per token: " in describe(search)[-1]  # One width has no verdict.
    assert search.interval(32) == pytest.approx(tuple(expected))
    assert to_json(search)["minima"]["32"] == [search.parabola(32).minimum, search.interval(32)]


def test_a_diverged_seed_and_a_best_rate_at_the_edge_are_no_optimum():
    search = made_search(lambda width: 1e-2)
    trials = [t._replace(loss=math.inf) if t.rate > 1.2e-2 else t for t in search.trials]
    diverged = search._replace(trials=tuple(trials))
    assert diverged.best_rate(64) == 1e-2
    assert diverged.parabola(64).minimum == pytest.approx(
        1e-2
    )  # By the rates that did not diverge.
    with pytest.raises(DataError, match="width 32 the best rate 0.02828 is at the edge"):
        describe(made_search(lambda width: 1.0))


def test_a_shifted_grid_keeps_the_trials_of_the_first_one():
    """All trials are there, so that nothing is trained and no data are read."""
    first = made_search(lambda width: 2e-2, rates=7, seeds=2)
    later = [RateTrial(w, 1e-2 * 2**k, s, 2.5) for w in WIDTHS for k in (2.0, 2.5) for s in (0, 1)]
    others = [RateTrial(w, 1.1e-2, s, 0.0) for w in WIDTHS for s in (0, 1)]  # Of another grid.
    alone = RateTrial(32, 1e-2 / 4, 0, 0.0)  # Not at every width.
    settings = Settings(model=tiny.config())
    shifted = with_changes(settings, {"optimizer.learning_rate": 2e-2})
    rounded = [t._replace(rate=t.rate * (1 + 4e-16)) if t.seed else t for t in first.trials]
    assert {t.rate for t in rounded} != {t.rate for t in first.trials}
    search = search_rates(shifted, None, WIDTHS, 7, 2, [*rounded, *later, *others, alone])
    rates = [1e-2 * 2 ** (k / 2) for k in range(-3, 6)]
    assert all(list(search.losses(width)) == pytest.approx(rates) for width in WIDTHS)
    assert len(search.trials) == 3 * 9 * 2 and search.spread() == 1
    digest = transfer_command.search_digest(settings, "data")
    assert digest == transfer_command.search_digest(shifted, "data")
    assert digest != transfer_command.search_digest(settings, "other data")
    longer = with_changes(settings, {"train.steps": 7})
    assert digest != transfer_command.search_digest(longer, "data")


def test_recorded_coordinates_hold_under_mup_and_not_under_the_standard():
    """The slopes are fitted here by numpy to the recorded root mean squares."""
    results = json.loads((ROOT / "results" / "width" / "coordinates.json").read_text("utf-8"))
    assert {f"{name} {rule}" for name in MIXERS for rule in ("mup", "standard")} <= results.keys()
    for name, record in results.items():
        log_width, rms = np.log(record["widths"]), np.array([*record["rms"].values()])
        slopes = np.abs(np.polyfit(log_width, np.log(rms).T, 1)[0])
        assert slopes.max() == pytest.approx(abs(record["steepest"]["slope"]), abs=2e-3)
        if name.endswith("mup"):
            assert record["widths"] == [32, 64, 128, 256, 512], name
            assert slopes.max() < STEEPEST.get(name, 0.1), name
        else:
            assert slopes.max() > 0.3, name


@pytest.fixture(scope="module")
def text_settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("width")
    tiny_runs.write_text(folder)
    flags = tiny_runs.text_flags(folder, folder / "unused", "--config.model.parametrization=mup")
    return folder, [flag for flag in flags if not flag.startswith("--workdir")]


@pytest.mark.slow
def test_the_commands_measure_tiny_models(text_settings, capsys):
    folder, flags = text_settings
    out = folder / "coordinates"
    argv = [*flags, "--widths=16,32", "--steps=2", "--seeds=1", f"--out={out}"]
    assert run_command(coordinates_command.run, argv) == 0
    record = json.loads((out / "coordinates.json").read_text())
    assert record["widths"] == [16, 32] and "logits" in record["taps"]
    assert {len(tap["rms"][0]) for tap in record["taps"].values()} == {3}
    assert (out / "coordinates.svg").exists() and "residual stream 1" in capsys.readouterr().out

    out = folder / "transfer"
    argv = [*flags, "--config.optimizer.learning_rate=1e-2", "--widths=16", f"--out={out}"]
    code = run_command(transfer_command.run, [*argv, "--rates=3"])
    assert "width 16, rate 0.01:" in capsys.readouterr().out
    trials = json.loads((out / "transfer.json").read_text())["trials"]
    assert len(trials) == 3 and all(math.isfinite(loss) for *_, loss in trials)
    assert run_command(transfer_command.run, [*argv, "--rates=3"]) == code
    assert "width 16, rate 0.01:" not in capsys.readouterr().out  # It is not run again.


@pytest.mark.parametrize(
    ("mixer", "ratio"), [("attention", 1.16), ("mamba2", 1.27), ("gated_deltanet", 2.19)]
)
def test_recorded_best_rates_differ_by_what_the_docs_state(mixer, ratio):
    """The parabola is fitted here by least squares over the whole grid around the best rate."""
    path = ROOT / "results" / "width" / f"transfer_{mixer}.json"
    trials = np.array(json.loads(path.read_text("utf-8"))["trials"])
    minima = []
    for width in (32, 64, 128, 256):
        of_width = trials[trials[:, 0] == width]
        rates = np.unique(of_width[:, 1])
        losses = np.array([of_width[of_width[:, 1] == rate, 3].mean() for rate in rates])
        near = np.abs(np.arange(len(rates)) - losses.argmin()) <= 4
        x = np.log(rates[near])
        design = np.stack([x**2, x, np.ones_like(x)], axis=1)
        (a, b, _), *_ = np.linalg.lstsq(design, losses[near])
        minima.append(np.exp(-b / (2 * a)))
    assert len(trials) == 4 * 9 * 4
    assert max(minima) / min(minima) == pytest.approx(ratio, abs=0.01)
    text = (ROOT / "docs" / "laws.md").read_text("utf-8")
    assert f" {ratio} |" in text or f"**{ratio}** |" in text
