"""The best learning rate by width: a grid of rates at each width, and how far the best ones differ.

The loss of a trial is the mean over the last tenth of its steps. All trials of a width share one
compiled step, and all rates of a seed the same initial values and batches. The losses near the best
rate differ by less than seeds do, so that the rate of the grid with the lowest loss is a poor
estimate. The minimum of a parabola in log rate, fitted to the means of all rates near it, is better
and has an interval over seeds.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from scipy import special

from arch.scaling import with_width
from data.open_stores import Data
from errors import ConfigError, DataError
from settings.changes import with_changes
from settings.json_types import JsonObject
from training.mesh import make_mesh
from training.program import make_program
from training.settings import Settings
from training.short_run import iter_steps

RATE_FACTOR = math.sqrt(2)
MIN_RATES = 3
MAX_RATIO = 1.5  # Ratio of best rates up to which a rate counts as transferred.
LATTICE_TOLERANCE = 1e-3  # Deviation of a rate from those of a grid, in factors of 2^1/2.
FIT_REACH = 4  # Rates of the grid on each side of the best one through which the parabola goes.
MIN_SEEDS = 3  # Seeds below which a minimum has no interval.
LOSS_SHARE = 0.1  # Share of the steps, the last ones, whose mean is the loss of a trial.


class RateTrial(NamedTuple):
    """A short run at one width and rate."""

    width: int
    rate: float
    seed: int
    loss: float  # Mean training loss of the last steps; inf if it diverged.


class RateParabola(NamedTuple):
    """A parabola of the loss in log rate at one width."""

    minimum: float  # The rate.
    curvature: float  # Nats per token, for a rate that differs by a factor of e.

    def excess(self, rate: float) -> float:
        """Returns the loss at a rate above that of the minimum, in nats per token."""
        return self.curvature * math.log(rate / self.minimum) ** 2


class RateSearch(NamedTuple):
    """The trials of one model at several widths."""

    layers: tuple[str, ...]
    parametrization: str
    steps: int
    trials: tuple[RateTrial, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths, increasing."""
        return tuple(sorted({trial.width for trial in self.trials}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of each trial, increasing."""
        return tuple(sorted({trial.seed for trial in self.trials}))

    def losses(self, width: int) -> dict[float, float]:
        """Returns the mean loss over seeds by rate, increasing; inf if a seed diverged."""
        rates, table = self._table(width)
        return dict(zip(rates.tolist(), table.mean(axis=1).tolist(), strict=True))

    def best_rate(self, width: int) -> float:
        """Returns the rate of the grid with the lowest mean loss.

        Raises:
            DataError: if it is at an edge of the grid, so that the best one may be outside.
        """
        losses = self.losses(width)
        rates = list(losses)
        best = min(rates, key=lambda rate: losses[rate])
        if best in (rates[0], rates[-1]):
            raise DataError(
                f"at width {width} the best rate {best:.4g} is at the edge of the grid "
                f"{rates[0]:.4g} to {rates[-1]:.4g}; add --rates or shift --config.optimizer."
                "learning_rate"
            )
        return best

    def parabola(self, width: int) -> RateParabola:
        """Returns the parabola of the mean loss through the rates around the best one."""
        rates, table = self._table(width)
        return _fit_parabola(rates, table.mean(axis=1))

    def interval(self, width: int) -> tuple[float, float] | None:
        """Returns the 95 % interval of the minimum over seeds, by the jackknife of its logarithm.

        None with fewer than `MIN_SEEDS` seeds.
        """
        rates, table = self._table(width)
        n = table.shape[1]
        if n < MIN_SEEDS:
            return None
        means = [np.delete(table, i, axis=1).mean(axis=1) for i in range(n)]
        without = [_fit_parabola(rates, mean).minimum for mean in means]
        error = math.sqrt((n - 1) * float(np.var(np.log(without))))
        factor = math.exp(float(special.stdtrit(n - 1, 0.975)) * error)
        minimum = self.parabola(width).minimum
        return minimum / factor, minimum * factor

    def spread(self) -> float:
        """Returns the ratio of the largest minimum to the smallest one."""
        minima = [self.parabola(width).minimum for width in self.widths]
        return max(minima) / min(minima)

    def excess_losses(self) -> dict[int, float]:
        """Returns the loss at the minimum of the smallest width, above that of each, by width."""
        parabolas = {width: self.parabola(width) for width in self.widths}
        rate = parabolas[self.widths[0]].minimum
        return {width: parabola.excess(rate) for width, parabola in parabolas.items()}

    def _table(
        self, width: int
    ) -> tuple[Float[np.ndarray, " rates"], Float[np.ndarray, "rates seeds"]]:
        """Returns the rates, increasing, and the losses of a width."""
        losses = {(t.rate, t.seed): t.loss for t in self.trials if t.width == width}
        rates = sorted({rate for rate, _ in losses})
        return np.array(rates), np.array([[losses[r, s] for s in self.seeds] for r in rates])


def _fit_parabola(
    rates: Float[np.ndarray, " rates"], losses: Float[np.ndarray, " rates"]
) -> RateParabola:
    """Returns a parabola in log rate; with the best rate and no curvature if it bends downwards."""
    best = int(np.argmin(losses))
    window = slice(max(best - FIT_REACH, 0), best + FIT_REACH + 1)
    x, y = np.log(rates[window] / rates[best]), losses[window]
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    curvature, slope = np.polyfit(x, y, 2)[:2] if len(x) >= MIN_RATES else (0.0, 0.0)
    if curvature <= 0:
        return RateParabola(float(rates[best]), 0.0)
    shift = np.clip(-slope / (2 * curvature), x[0], x[-1])
    return RateParabola(float(rates[best] * np.exp(shift)), float(curvature))


def search_rates(
    settings: Settings,
    data: Data,
    widths: Sequence[int],
    num_rates: int,
    num_seeds: int,
    done: Iterable[RateTrial] = (),
    on_trial: Callable[[RateTrial], None] = lambda trial: None,
) -> RateSearch:
    """Trains a model at every width and rate.

    Args:
        settings: resolved settings; their rate is the middle of the grid.
        data: the data of the runs.
        widths: widths of the model.
        num_rates: rates of the grid, a factor of 2^1/2 apart.
        num_seeds: seeds of each trial, from that of the settings on.
        done: trials that need not be run again. Those of a grid that was shifted count too, at
            rates that were tried at every width and seed.
        on_trial: called after each trial.

    Raises:
        ConfigError: if there are too few rates, or a part does not follow the width.
    """
    if num_rates < MIN_RATES or num_rates % 2 == 0:
        raise ConfigError(
            f"--rates is {num_rates}, must be an odd number of {MIN_RATES} or more; nearest: "
            f"{max(num_rates + 1 - num_rates % 2, MIN_RATES)}"
        )
    by_key = {(t.width, _rate_key(t.rate), t.seed): t for t in done}
    center = settings.optimizer.learning_rate
    seeds = range(settings.seed, settings.seed + num_seeds)
    rates = {_rate_key(rate): rate for rate in rate_grid(center, num_rates)}
    cells = [(width, seed) for width in sorted({*widths}) for seed in seeds]
    for rate in sorted({trial.rate for trial in by_key.values()}):
        key, steps = _rate_key(rate), math.log(rate / center, RATE_FACTOR)
        is_complete = all((width, key, seed) in by_key for width, seed in cells)
        if is_complete and abs(steps - round(steps)) < LATTICE_TOLERANCE:
            rates.setdefault(key, rate)
    trials = []
    for width, seed in cells:
        for key, rate in sorted(rates.items(), key=lambda item: item[1]):
            trial = by_key.get((width, key, seed))
            if trial is None:
                trial = RateTrial(width, rate, seed, _loss(settings, data, width, rate, seed))
                on_trial(trial)
            trials.append(trial._replace(rate=rate))  # Of another grid, it may be rounded apart.
    model = settings.model
    return RateSearch(model.layers, model.parametrization, settings.train.steps, tuple(trials))


def _rate_key(rate: float) -> str:
    """Returns a rate without the rounding of its last digits."""
    return f"{rate:.6g}"


def rate_grid(center: float, num_rates: int) -> list[float]:
    """Returns an odd number of rates around `center`, a factor of 2^1/2 apart."""
    half = num_rates // 2
    return [center * RATE_FACTOR**k for k in range(-half, half + 1)]


def describe(search: RateSearch) -> list[str]:
    """Returns the lines of the command: losses by width and rate, best rates, and a verdict."""
    rates = list(search.losses(search.widths[0]))
    lines = [
        f"{' '.join(search.layers)}, {search.parametrization}: mean loss of the last steps of "
        f"{search.steps}",
        f"{'rate':>10}" + "".join(f"{width:>10}" for width in search.widths),
    ]
    columns = [search.losses(width) for width in search.widths]
    lines += [
        f"{rate:>10.4g}" + "".join(f"{column[rate]:>10.4f}" for column in columns) for rate in rates
    ]
    for width in search.widths:
        interval = search.interval(width)
        reach = f" (95 %: {interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
        lines.append(
            f"width {width}: best rate {search.best_rate(width):.4g}, minimum of the parabola "
            f"{search.parabola(width).minimum:.4g}{reach}"
        )
    costs = [f"{excess:.4f} at {width}" for width, excess in search.excess_losses().items()]
    lines.append(
        f"loss above the minimum at that of width {search.widths[0]}, in nats per token: "
        + ", ".join(costs)
    )
    if len(search.widths) > 1:
        lines.append(_verdict(search))
    return lines


def _verdict(search: RateSearch) -> str:
    spread, n = search.spread(), len(search.seeds)
    verdict = "transfers" if spread <= MAX_RATIO else "does not transfer"
    if n < MIN_SEEDS:
        verdict = f"has no verdict with {n} of {MIN_SEEDS} --seeds"
    return f"the minima differ by a factor of {spread:.3g}: the rate {verdict}"


def to_json(search: RateSearch) -> JsonObject:
    """Returns the search as transfer.json has it."""
    minima = {str(w): [search.parabola(w).minimum, search.interval(w)] for w in search.widths}
    trials = [list(trial) for trial in search.trials]
    return search._asdict() | {"minima": minima, "trials": trials}


def _loss(settings: Settings, data: Data, width: int, rate: float, seed: int) -> float:
    changes = {"seed": seed, "optimizer.learning_rate": rate, "optimizer.on_nonfinite": "skip"}
    changes |= {"optimizer.max_skips": settings.train.steps}
    settings = dataclasses.replace(settings, model=with_width(settings.model, width))
    settings = with_changes(settings, changes)
    program = make_program(settings, make_mesh(settings.mesh, jax.devices()[:1]))
    metrics = [step.metrics["loss"].sum for step in iter_steps(program, data) if step.metrics]
    losses = np.array(jax.device_get(metrics[-max(round(LOSS_SHARE * len(metrics)), 1) :]))
    return float(np.mean(losses)) if np.all(np.isfinite(losses)) else math.inf
