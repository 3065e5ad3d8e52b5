"""Accuracy with its interval, and the mean loss."""

import numpy as np
import pytest

from stages.model.metrics import score, wilson_interval


@pytest.mark.parametrize(
    ("correct", "examples", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # the four from R. G. Newcombe, Statistics in Medicine 17, 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_interval_agrees_with_published_values(correct: int, examples: int, low: float, high: float) -> None:
    assert tuple(round(bound, 4) for bound in wilson_interval(correct, examples)) == (low, high)


def test_score_divides_sums_once() -> None:
    metrics = score(np.array([True, False, True, True]), np.array([0.5, 1.0, 0.25, 0.25]))

    assert (metrics["accuracy"], metrics["correct"], metrics["examples"], metrics["loss"]) == (0.75, 3, 4, 0.5)
