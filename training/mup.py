"""muP: rates that transfer over width, by the roles of parameters (arXiv:2203.03466, table 8).

Parts declare the role of each parameter (`arch/sharding.py`) and which of their sizes follow the
width (`arch/scaling.py`). From these it follows which axes of a parameter grow. With m = width /
base_width, and 0 or 1 for an axis that does not grow or grows, the direction of an update is
multiplied by m to the power of

    Adam, Lion    -in              every entry moves by about the learning rate
    Muon          -in (1 - out/2)  the spectral norm of a step is that of sqrt(out / in)
    SGD           out - in

Matrices start with the variance 1 / in under both parametrizations, those of Mamba's step size, b
and c included, which would vanish in wide models if they were scaled as output weights (Vankadara
et al., NeurIPS 2024). Readouts (routers, gates with one number) start with 1 / (in m): updates of
the vector that they read are aligned with their columns, so that with 1 / in the first changes of
router logits would grow with the root of the width. Gated DeltaNet needs nothing else: its keys and
queries have unit length, and its outputs are normed (arXiv:2606.04048). Logits are divided by m
(`ModelConfig.logit_scale`), and an untied table starts at 0 (D.2 there). Heads follow the width, so
that K is constant; for heads that widen instead, `attention.base_head_dim` divides scores by K.
Weight decay times the learning rate is the same at every width.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import optax

from arch.sharding import ParamRole
from errors import ConfigError

WIDTH_RATIO = 16  # Ratio of the widths whose shapes are compared; large, as some sizes are rounded.


class Growth(NamedTuple):
    """Whether the axes of a parameter grow with the width of the model: 1, or 0."""

    inputs: int
    outputs: int


def _entrywise(growth: Growth, is_matrix: bool) -> float:
    return -growth.inputs


def _orthogonal(growth: Growth, is_matrix: bool) -> float:
    return -growth.inputs * (1 - growth.outputs / 2) if is_matrix else -growth.inputs


def _gradient(growth: Growth, is_matrix: bool) -> float:
    return growth.outputs - growth.inputs


# Exponent of the width ratio by optimizer, a function of the growth and whether it is a matrix.
EXPONENTS: dict[str, Callable[[Growth, bool], float]] = {
    "adamw": _entrywise,
    "lion": _entrywise,
    "muon": _orthogonal,
    "sgd": _gradient,
}


def axis_growth(shape: tuple[int, ...], wide_shape: tuple[int, ...], role: ParamRole) -> Growth:
    """Returns which axes grow, from the shapes in models whose widths differ by WIDTH_RATIO."""
    grows = [
        round(math.log(wide / size, WIDTH_RATIO))
        for size, wide in zip(shape, wide_shape, strict=True)
    ]
    if role == "matrix":
        return Growth(grows[-2], grows[-1])
    if role == "query":
        return Growth(grows[-1], 0)
    return Growth(0, max(grows, default=0))


def rate_factors(
    optimizer: str,
    width_ratio: float,
    growths: Mapping[str, Growth],
    roles: Mapping[str, ParamRole],
) -> dict[str, float]:
    """Returns the factor of the direction of an update, by parameter.

    Args:
        optimizer: its name.
        width_ratio: width over base width.
        growths: which axes grow, by parameter.
        roles: what each parameter does; a "balance_bias" has a rate of its own, and the factor 1.

    Raises:
        ConfigError: if the optimizer has no rule.
    """
    if optimizer not in EXPONENTS:
        raise ConfigError(
            f"optimizer.name {optimizer!r} has no rule for model.parametrization 'mup'; add one "
            f"to EXPONENTS in training/mup.py, or use {', '.join(EXPONENTS)}"
        )
    exponent = EXPONENTS[optimizer]
    return {
        name: 1.0
        if roles[name] == "balance_bias"
        else width_ratio ** exponent(growth, roles[name] == "matrix")
        for name, growth in growths.items()
    }


def scale_directions(
    inner: optax.GradientTransformation, factors: Mapping[str, float]
) -> optax.GradientTransformation:
    """Returns `inner` with the direction of each update scaled, but not its weight decay.

    Updates are -rate (direction + decay parameter), and nothing else in them reads parameters.
    Therefore `inner` sees parameters over their factor, and its update is multiplied by the factor.
    """

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        scaled = {name: p / factors[name] for name, p in (params or {}).items()}
        updates, new_state = inner.update(grads, state, scaled)
        return {name: u * factors[name] for name, u in updates.items()}, new_state

    return optax.GradientTransformation(inner.init, update)
