"""Least squares of L = E + A / N^alpha + B / D^beta by variable projection, for many data at once.

For given exponents the law is linear in E, A and B, and in the gap of points before a cooldown if
there are any. They follow by non-negative least squares (all sets of positive ones are tried). Only
the two exponents are searched: on a grid, then by Levenberg-Marquardt with Kaufman's approximation
of the Jacobian (Golub & Pereyra 1973; Kaufman 1975). All resamples of a bootstrap are fitted as one
array.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from protocol.statistics.scaling_law import MIN_EXPONENT

Array = np.ndarray

MAX_EXPONENT = 3.0  # Bound of the exponents; `MIN_EXPONENT` is the other.
N_GRID = 16  # Exponents of each kind that the grid has.
N_ITERATIONS = 60  # Limit of Levenberg-Marquardt; it stops when no fit improves.
TOLERANCE = 1e-13  # Relative decrease of the squares below which a fit has converged.


class SurfaceData(NamedTuple):
    """Logarithms of N and D, less their means, with the weights of the points."""

    log_n: Float[Array, " k"]
    log_d: Float[Array, " k"]
    weights: Float[Array, " k"]
    gaps: Float[Array, " k"] | None = (
        None  # 1: the point lies above the law by the gap; None: none.
    )


class SurfaceSolutions(NamedTuple):
    """The constants of many fits: A and B belong to the centered logarithms of the data."""

    exponents: Float[Array, "m 2"]
    constants: Float[Array, "m c"]  # E, A, B, and the gap if the data have one.
    squares: Float[Array, " m"]  # Weighted sums of squared residuals.


def solve_surfaces(data: SurfaceData, losses: Float[Array, "m k"]) -> SurfaceSolutions:
    """Fits the law to each row of losses, at the same N and D."""
    return _refine(data, losses, _search_grid(data, losses))


def _search_grid(data: SurfaceData, losses: Array) -> Array:
    """Returns the exponents of the grid with the least squares, for each row of losses."""
    values = np.geomspace(0.03, 1.5, N_GRID)
    grid = np.stack(np.meshgrid(values, values), -1).reshape(-1, 2)
    roots = np.sqrt(data.weights)
    design = _design(data, grid) * roots[:, None]
    gram = np.einsum("gki,gkj->gij", design, design)
    right = (design.swapaxes(1, 2) @ (losses * roots).T).swapaxes(1, 2)
    constants = np.linalg.solve(_ridge(gram)[:, None], right[..., None])[..., 0]
    # Where a constant would be negative, the fit without all of that set is no worse a start.
    explained = (constants * right).sum(-1)
    is_valid = (constants >= 0).all(-1)
    score = np.where(is_valid, explained, -np.inf)
    best = score.argmax(0)
    fallback = ~np.isfinite(score.max(0))
    if fallback.any():
        squares = np.stack(
            [
                _solve_constants(_design(data, pair[None]), data.weights, losses[fallback])[1]
                for pair in grid
            ]
        )
        best[fallback] = squares.argmin(0)
    return grid[best]


def _refine(data: SurfaceData, losses: Array, exponents: Array) -> SurfaceSolutions:
    """Improves the exponents of each row by Levenberg-Marquardt."""
    theta = np.log(exponents)
    constants, squares = _solve_constants(_design(data, exponents), data.weights, losses)
    damping = np.full(len(theta), 1e-3)
    active = np.arange(len(theta))
    total = (data.weights * (losses - losses.mean(-1, keepdims=True)) ** 2).sum(-1)
    for _ in range(N_ITERATIONS):
        rows, y = theta[active], losses[active]
        step = _lm_step(data, y, np.exp(rows), constants[active], damping[active])
        trial = np.clip(rows + step, np.log(MIN_EXPONENT), np.log(MAX_EXPONENT))
        design = _design(data, np.exp(trial))
        new_constants, new_squares = _solve_constants(design, data.weights, y)
        gain = squares[active] - new_squares
        accepted = gain > 0
        target = active[accepted]
        theta[target], constants[target] = trial[accepted], new_constants[accepted]
        squares[target] = new_squares[accepted]
        damping[active] *= np.where(accepted, 0.2, 8.0)
        is_small = gain <= TOLERANCE * np.maximum(squares[active], 1e-16 * total[active])
        done = (is_small & accepted) | (damping[active] > 1e8) | (new_squares == 0)
        active = active[~done]
        if not active.size:
            break
    return SurfaceSolutions(np.exp(theta), constants, squares)


def _lm_step(
    data: SurfaceData, losses: Array, exponents: Array, constants: Array, damping: Array
) -> Array:
    """Returns the step of the logarithms of both exponents, for each row."""
    roots = np.sqrt(data.weights)
    design = _design(data, exponents)
    residual = (losses - (design @ constants[..., None])[..., 0]) * roots
    x = np.stack([data.log_n, data.log_d], -1)
    slopes = x * design[..., 1:3] * (constants[:, None, 1:3] * exponents[:, None, :])
    slopes = slopes * roots[:, None]  # Of the residual, at fixed constants.
    weighted = design * roots[:, None] * (constants[:, None, :] > 0)
    gram = _ridge(np.einsum("mki,mkj->mij", weighted, weighted))
    shares = np.linalg.solve(gram, weighted.swapaxes(1, 2) @ slopes)
    jacobian = slopes - weighted @ shares
    normal = jacobian.swapaxes(1, 2) @ jacobian
    gradient = (jacobian.swapaxes(1, 2) @ residual[..., None])[..., 0]
    diagonal = np.einsum("mii->mi", normal)
    scale = np.maximum(diagonal, 1e-12 * diagonal.max(-1, keepdims=True) + 1e-300)
    damped = normal + damping[:, None, None] * scale[:, :, None] * np.eye(2)
    step = -np.linalg.solve(damped, gradient[..., None])[..., 0]
    return np.clip(step, -1.0, 1.0)


def _design(data: SurfaceData, exponents: Array) -> Float[Array, "m k c"]:
    """Returns the columns 1, N^-alpha, D^-beta and the gap for each pair of exponents."""
    x = np.stack([data.log_n, data.log_d], -1)
    powers = np.exp(-exponents[:, None, :] * x)
    columns = [np.ones_like(powers[..., :1]), powers]
    if data.gaps is not None:
        columns.append(np.broadcast_to(data.gaps[:, None], columns[0].shape))
    return np.concatenate(columns, -1)


def _solve_constants(design: Array, weights: Array, losses: Array) -> tuple[Array, Array]:
    """Returns the non-negative constants and the squares of each row; `design` may have one row."""
    roots = np.sqrt(weights)
    design = np.broadcast_to(design * roots[:, None], (len(losses), *design.shape[1:]))
    y = losses * roots
    gram = np.einsum("mki,mkj->mij", design, design)
    right = (design.swapaxes(1, 2) @ y[..., None])[..., 0]
    constants = np.linalg.solve(_ridge(gram), right[..., None])[..., 0]
    negative = np.flatnonzero((constants < 0).any(-1))
    if negative.size:
        constants[negative] = _solve_sets(gram[negative], right[negative])
    residual = y - (design @ constants[..., None])[..., 0]
    return constants, (residual**2).sum(-1)


def _solve_sets(gram: Array, right: Array) -> Array:
    """Returns the best constants over all sets of positive ones."""
    count = right.shape[-1]
    sets = np.array([s for s in itertools.product((0.0, 1.0), repeat=count) if any(s)])
    pairs = sets[:, :, None] * sets[:, None, :]
    masked = gram[:, None] * pairs + np.eye(count) * (1 - sets)[:, None, :]
    constants = np.linalg.solve(_ridge(masked), (right[:, None] * sets)[..., None])[..., 0]
    explained = (constants * right[:, None]).sum(-1)
    explained = np.where((constants >= 0).all(-1), explained, -np.inf)
    best = explained.argmax(-1)
    return constants[np.arange(len(best)), best]


def _ridge(gram: Array) -> Array:
    """Returns the matrices with 1e-14 of the mean diagonal added, so that none is singular."""
    count = gram.shape[-1]
    scale = np.einsum("...ii->...", gram) / count
    return gram + 1e-14 * scale[..., None, None] * np.eye(count)
