"""Coordinate checks (arXiv:2203.03466, D.1): how the size of every tap follows the width.

The size of a tap is its root mean square. Under a parametrization whose rates transfer, no tap
grows or shrinks with the width after a few steps of training.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from arch import ModelConfig, SequenceInfo
from arch.activation_taps import run_with_taps
from arch.layer_outputs import layer_outputs
from arch.scaling import with_width
from arch.sequence import View
from arch.stack import MAX_UNROLLED_LAYERS
from data.open_stores import Data
from errors import ConfigError
from objectives import Batch, Trainable
from settings.changes import with_changes
from settings.json_types import JsonObject
from settings.types import is_digits
from training.checkpoint.param_names import named_leaves
from training.mesh import make_mesh
from training.optimizer import param_metadata
from training.program import make_program
from training.settings import Settings
from training.short_run import iter_steps

MIN_WIDTHS = 2
MAX_SLOPE = 0.1  # Absolute slope up to which a tap counts as independent of the width.
TAPPED_ROLES = ("matrix", "query")


class CoordinateCheck(NamedTuple):
    """The sizes of all taps of one model over widths and steps."""

    layers: tuple[str, ...]
    parametrization: str
    learning_rate: float
    seeds: int
    widths: tuple[int, ...]
    taps: dict[str, Float[np.ndarray, "widths steps+1"]]  # Root mean squares.
    errors: dict[str, float]  # Standard errors of the last slopes over seeds; empty: one seed.

    @property
    def num_steps(self) -> int:
        """The number of steps."""
        return next(iter(self.taps.values())).shape[1] - 1

    def slopes(self, step: int = -1) -> dict[str, float]:
        """Returns the slope of log RMS over log width after a step, by tap, by least squares."""
        return {name: _slope(self.widths, rms[:, step]) for name, rms in self.taps.items()}

    def steepest(self, step: int = -1) -> tuple[str, float]:
        """Returns the tap whose slope has the largest absolute value, and the slope."""
        slopes = self.slopes(step)
        name = max(slopes, key=lambda tap: abs(slopes[tap]))
        return name, slopes[name]

    def describe(self) -> list[str]:
        """Returns the lines of the command: the taps after the last step, and a verdict."""
        slopes, step = self.slopes(), self.num_steps
        label = max(map(len, self.taps))
        header = "".join(f"{width:>10}" for width in self.widths)
        lines = [
            f"{' '.join(self.layers)}, {self.parametrization}, rate {self.learning_rate:g}: root "
            f"mean square after {step} steps, {self.seeds} seeds",
            f"{'tap':<{label}}{header}{'slope':>9}",
        ]
        for name, sizes in self.taps.items():
            row = "".join(f"{size:>10.4g}" for size in sizes[:, -1])
            lines.append(f"{name:<{label}}{row}{slopes[name]:>+9.3f}")
        name, slope = self.steepest()
        over = sum(abs(value) > MAX_SLOPE for value in slopes.values())
        verdict = f"{over} of {len(slopes)} taps have" if over else "no tap has"
        error = f" (standard error over seeds {self.errors[name]:.3f})" if self.errors else ""
        lines.append(
            f"{verdict} a slope above {MAX_SLOPE:g}; the steepest is {slope:+.3f}{error}, of {name}"
        )
        return lines

    def last_step(self) -> JsonObject:
        """Returns the sizes after the last step, and the steepest tap."""
        name, slope = self.steepest()
        taps = {
            name: [float(f"{x:.4g}") for x in sizes[:, -1]] for name, sizes in self.taps.items()
        }
        return {
            "rate": self.learning_rate,
            "seeds": self.seeds,
            "widths": list(self.widths),
            "steepest": {"tap": name, "slope": round(slope, 4)}
            | ({"standard_error": round(self.errors[name], 4)} if self.errors else {}),
            "rms": taps,
        }

    def to_json(self) -> JsonObject:
        """Returns everything that was measured."""
        slopes = self.slopes()
        return self._asdict() | {
            "taps": {
                name: {"slope": slopes[name], "rms": sizes.round(6).tolist()}
                for name, sizes in self.taps.items()
            }
        }


def check_coordinates(
    settings: Settings, data: Data, widths: Sequence[int], steps: int, seeds: int
) -> CoordinateCheck:
    """Trains a model at several widths for a few steps at a constant rate, and measures its taps.

    Args:
        settings: resolved settings; the parts follow the width as they declare it.
        data: the data of the run; all widths are measured on its first batch.
        widths: widths of the model, each at least once.
        steps: steps of training.
        seeds: models of each width, from the seed of the settings on; their squares are averaged.

    Raises:
        ConfigError: if there are too few widths, a part does not follow them, or the objective
            does not read packed rows of tokens by one stack.
    """
    widths = tuple(sorted({*widths}))
    if len(widths) < MIN_WIDTHS:
        raise ConfigError(f"--widths has {len(widths)} widths, must be {MIN_WIDTHS} or more")
    if settings.row_spec.row_kind != "packed" or settings.model.encoder.depth:
        raise ConfigError(
            f"objective {settings.objective!r} does not read packed rows by one stack, as taps "
            "need; use causal_lm or masked_lm"
        )
    columns = [
        [_tap_sizes(short_settings(settings, width, steps, seed), data) for seed in range(seeds)]
        for width in widths
    ]
    taps = {
        name: np.sqrt(
            np.mean([[[s[name] for s in run] for run in runs] for runs in columns], axis=1)
        )
        for name in columns[0][0][0]
    }
    errors = {} if seeds == 1 else {name: slope_error(widths, columns, name) for name in taps}
    model, rate = settings.model, settings.optimizer.learning_rate
    return CoordinateCheck(model.layers, model.parametrization, rate, seeds, widths, taps, errors)


def slope_error(
    widths: Sequence[int], columns: list[list[list[dict[str, float]]]], name: str
) -> float:
    """Returns the standard error of the last slope of a tap over seeds.

    Args:
        widths: W widths.
        columns: the mean squares by tap, of each step of each seed of each width.
        name: the tap.
    """
    sizes = np.sqrt([[run[-1][name] for run in runs] for runs in columns])
    slopes = [_slope(widths, of_seed) for of_seed in sizes.T]
    if not np.all(np.isfinite(slopes)):
        return math.inf
    return float(np.std(slopes, ddof=1) / math.sqrt(len(slopes)))


def parse_widths(texts: Sequence[str]) -> list[int]:
    """Returns the widths that a flag names.

    Raises:
        ConfigError: if there is none, or if one is not a whole number above 0.
    """
    if not texts:
        raise ConfigError("--widths is empty, must be whole numbers, as 32,64,128")
    for text in texts:
        if not is_digits(text.strip()) or not int(text):
            raise ConfigError(f"--widths has {text!r}, must be whole numbers, as 32,64,128")
    return [int(text) for text in texts]


def short_settings(settings: Settings, width: int, steps: int, seed: int) -> Settings:
    """Returns the settings of a short run at another width, whose stack is unrolled.

    A stack of more layers than are unrolled at a time is shortened by whole repeats of its pattern.
    """
    model = with_width(settings.model, width)
    period = len(model.layers)
    repeats = (model.depth - len(model.first_layers)) // period
    repeats = min(repeats, max(MAX_UNROLLED_LAYERS // period, 1))
    changes = {
        "seed": settings.seed + seed,
        "model.depth": len(model.first_layers) + repeats * period,
        "model.scan": False,
        "model.remat": "none",
        "train.steps": steps,
        "optimizer.schedule": "constant",
        "optimizer.warmup": 0.0,
        "optimizer.on_nonfinite": "skip",
        "optimizer.max_skips": steps,
    }
    return with_changes(dataclasses.replace(settings, model=model), changes)


def _tap_sizes(settings: Settings, data: Data) -> list[dict[str, float]]:
    """Returns the mean squares of the taps before the first step and after each step."""
    program = make_program(settings, make_mesh(settings.mesh, jax.devices()[:1]))
    config, view = settings.model, settings.row_spec.view
    sizes, first_batch = [], None
    for step in iter_steps(program, data):
        first_batch = first_batch or step.batch
        sizes.append(jax.device_get(_measure(config, view, step.state.trainable, first_batch)))
    return [{name: float(value) ** 2 for name, value in taps.items()} for taps in sizes]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(
    config: ModelConfig, view: View, trainable: Trainable, batch: Batch
) -> dict[str, Array]:
    """Returns the taps of products with matrices, of the vectors between layers, and of logits."""
    leaves, roles = named_leaves(trainable), param_metadata(trainable, "role")
    structure = jax.tree.structure(trainable)
    seq = SequenceInfo.from_batch(batch, view)

    def run(matrices: dict[str, Array]) -> Array:
        model = jax.tree.unflatten(structure, [matrices.get(n, x) for n, x in leaves.items()]).model
        return model(batch["tokens"], seq)[0]

    matrices = {name: x for name, x in leaves.items() if roles[name] in TAPPED_ROLES}
    taps = run_with_taps(run, matrices)
    model = trainable.model
    stream = layer_outputs(model, batch["tokens"], seq, _rms)
    taps |= {f"residual stream {i}": size for i, size in enumerate(stream)}
    logits = model.logits(model(batch["tokens"], seq)[0])[..., : config.vocab_size]
    return taps | {"logits": _rms(logits)}


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _slope(widths: Sequence[int], rms: Float[np.ndarray, " widths"]) -> float:
    """Returns the slope of log RMS over log width; inf if a size is 0 or not finite."""
    if not np.all(rms > 0) or not np.all(np.isfinite(rms)):
        return math.inf
    log_width = np.log(widths) - np.mean(np.log(widths))
    return float(log_width @ np.log(rms) / (log_width @ log_width))
