"""The training rule of docs/reproducibility.md in NumPy, written from that page alone.

It shares no code with the models: the closed-form gradient instead of automatic differentiation, NumPy's exp, log and
matrix product. That TensorFlow and JAX give its bits is what the project promises.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Run(NamedTuple):
    """What training ends with: W (d, q), b (q,) and the training loss of each epoch."""

    W: Floats
    b: Floats
    losses: list[float]


def snap(x: Any, k: int) -> Any:
    """Return the multiple of 2^-k nearest to ``x``, ties to even."""
    return np.rint(x * 2.0**k) * 2.0**-k


def softmax(logits: Floats) -> Floats:
    """Return the probabilities (n, q) of logits (n, q)."""
    exponentials = snap(np.exp(snap(logits - logits.max(axis=1, keepdims=True), 20)), 22)
    y_hat: Floats = np.maximum(snap(exponentials / exponentials.sum(axis=1, keepdims=True), 24), 2.0**-24)
    return y_hat


def train(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    lr: float,
    sigma: float,
) -> Run:
    """Train on images (n, height, width) and labels (n,), uint8, ten classes."""
    n = len(labels)
    X = images.reshape(n, -1)
    W = snap(sigma * np.random.default_rng([seed, 0]).standard_normal((X.shape[1], 10)), 26) + 0.0
    b = np.zeros(10)
    k_G = 24 + int(np.ceil(np.log2(batch_size)))
    rng = np.random.default_rng([seed, 1])
    losses = []
    for _ in range(epochs):
        order = rng.permutation(n)
        loss = 0.0
        for start in range(0, n, batch_size):
            chosen = order[start : start + batch_size]
            m = len(chosen)
            x, rows, y = X[chosen] / 256, np.arange(m), labels[chosen]
            p = softmax(x @ W + b)
            loss -= snap(np.log(p[rows, y]), 20).sum()
            onehot = np.zeros((m, 10))
            onehot[rows, y] = 1
            D = snap((p - onehot) / m, k_G)
            W = W - snap(lr * (x.T @ D), 26)
            b = b - snap(lr * D.sum(axis=0), 26)
        losses.append(float(loss / n))
    return Run(W, b, losses)
