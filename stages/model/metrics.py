"""Metrics of a classifier's predictions: accuracy with its interval, and the mean loss."""

import math

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""The 97.5 % point of the standard normal distribution: two-sided intervals of 95 %."""


def wilson_interval(correct: int, examples: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (E. B. Wilson, JASA 22, 1927, pages 209-212)."""
    p, n = correct / examples, examples
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    spread = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(centre - spread, 0.0), min(centre + spread, 1.0)


def score(correct: NDArray[np.bool_], losses: NDArray[np.float64]) -> dict[str, float]:
    """Summarise which examples were classified correctly (n,) and their losses (n,), in nats, as metrics."""
    hits, examples = int(correct.sum()), len(correct)
    low, high = wilson_interval(hits, examples)
    return {
        "accuracy": hits / examples,
        "accuracy_high": high,
        "accuracy_low": low,
        "correct": hits,
        "examples": examples,
        "loss": float(losses.sum()) / examples,
    }
