"""Multinomial logistic regression with an L2 penalty: what a probe may do with frozen features.

    minimise over W [K D], b [K]:   mean_n -log softmax(W x_n + b)[y_n] + l2/2 |W|^2

It is convex, starts at 0 and runs in float64: the same features give the same probe.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

STEPS = 200  # of L-BFGS; what has not converged by then is as good as done


class Logistic(NamedTuple):
    weights: Float[np.ndarray, "K D"]
    bias: Float[np.ndarray, " K"]

    def log_shares(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        return special.log_softmax(x @ self.weights.T + self.bias, axis=1)


def fit(
    x: Float[np.ndarray, "N D"],
    y: Int[np.ndarray, " N"],
    classes: int,
    l2: float,
    start: Logistic | None = None,
) -> Logistic:
    """From `start`, which decides nothing but the time it takes."""
    (N, D), K = x.shape, classes
    right = np.zeros((N, K))
    right[np.arange(N), y] = 1

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        made = _unflat(flat, K, D)
        logs = made.log_shares(x)
        slope = (np.exp(logs) - right) / N
        nats = -np.sum(logs * right) / N + 0.5 * l2 * np.sum(made.weights**2)
        gradient = Logistic(slope.T @ x + l2 * made.weights, slope.sum(axis=0))
        return nats, _flat(gradient)

    first = np.zeros(K * (D + 1)) if start is None else _flat(start)
    options = {"maxiter": STEPS, "maxcor": 20, "gtol": 1e-5, "ftol": 1e-9}
    found = optimize.minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    return _unflat(found.x, K, D)


def standardised(x: Float[np.ndarray, "N D"], train: np.ndarray) -> Float[np.ndarray, "N D"]:
    """Mean 0 and deviation 1 over the rows of `train`; what does not vary there is 0."""
    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
    varies = deviation > 1e-8 * (np.abs(mean) + 1e-300)
    return (x - mean) * np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def principal(
    x: Float[np.ndarray, "N D"], train: np.ndarray, width: int
) -> Float[np.ndarray, "N W"]:
    """The first `width` principal components, as the rows of `train` have them."""
    centre = x[train].mean(axis=0)
    axes = np.linalg.svd(x[train] - centre, full_matrices=False)[2]
    return (x - centre) @ axes[:width].T


def _flat(made: Logistic) -> np.ndarray:
    return np.concatenate([made.weights.reshape(-1), made.bias])


def _unflat(flat: np.ndarray, K: int, D: int) -> Logistic:
    return Logistic(flat[: K * D].reshape(K, D), flat[K * D :])
