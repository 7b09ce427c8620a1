"""Multinomial logistic regression with an L2 penalty, the classifier of probes.

    minimize over W [K D], b [K]:   mean_n -log softmax(W x_n + b)[y_n] + l2/2 |W|^2

The problem is convex, the optimizer starts at 0 and computes in float64, so the same features
always give the same probe.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

MAX_ITERATIONS = 200  # Limit for L-BFGS; later iterations change the result very little.


class LogisticRegression(NamedTuple):
    """Holds the parameters of a classifier with K classes and D features."""

    weights: Float[np.ndarray, "K D"]
    bias: Float[np.ndarray, " K"]

    def log_probs(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        """Returns the log-probability of each class for each row of `x`."""
        return special.log_softmax(x @ self.weights.T + self.bias, axis=1)


def fit_logistic(
    x: Float[np.ndarray, "N D"],
    y: Int[np.ndarray, " N"],
    n_classes: int,
    l2: float,
    init: LogisticRegression | None = None,
) -> LogisticRegression:
    """Fits the classifier; the initial parameters affect only the time that this takes."""
    (N, D), K = x.shape, n_classes
    one_hot = np.zeros((N, K))
    one_hot[np.arange(N), y] = 1

    def loss_and_grad(vector: np.ndarray) -> tuple[float, np.ndarray]:
        params = _unflatten(vector, K, D)
        log_probs = params.log_probs(x)
        logit_grad = (np.exp(log_probs) - one_hot) / N
        loss = -np.sum(log_probs * one_hot) / N + 0.5 * l2 * np.sum(params.weights**2)
        grad = LogisticRegression(logit_grad.T @ x + l2 * params.weights, logit_grad.sum(axis=0))
        return loss, _flatten(grad)

    start = np.zeros(K * (D + 1)) if init is None else _flatten(init)
    options = {"maxiter": MAX_ITERATIONS, "maxcor": 20, "gtol": 1e-5, "ftol": 1e-9}
    result = optimize.minimize(loss_and_grad, start, jac=True, method="L-BFGS-B", options=options)
    return _unflatten(result.x, K, D)


def standardize(x: Float[np.ndarray, "N D"], train_indices: np.ndarray) -> Float[np.ndarray, "N D"]:
    """Scales features to mean 0 and standard deviation 1 over the rows at `train_indices`.

    A feature that is constant over these rows becomes 0.
    """
    mean, deviation = x[train_indices].mean(axis=0), x[train_indices].std(axis=0)
    varies = deviation > 1e-8 * (np.abs(mean) + 1e-300)
    return (x - mean) * np.where(varies, 1 / np.where(varies, deviation, 1), 0)


def pca(
    x: Float[np.ndarray, "N D"], train_indices: np.ndarray, n_components: int
) -> Float[np.ndarray, "N W"]:
    """Projects on the first principal components of the rows at `train_indices`."""
    center = x[train_indices].mean(axis=0)
    axes = np.linalg.svd(x[train_indices] - center, full_matrices=False)[2]
    return (x - center) @ axes[:n_components].T


def _flatten(params: LogisticRegression) -> np.ndarray:
    return np.concatenate([params.weights.reshape(-1), params.bias])


def _unflatten(vector: np.ndarray, K: int, D: int) -> LogisticRegression:
    return LogisticRegression(vector[: K * D].reshape(K, D), vector[K * D :])
