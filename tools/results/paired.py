"""Two models on the same examples: whether their difference is more than noise.

Of the examples that only one of the two classifies correctly, the number that each classifies is binomial with p = 1/2
under the null hypothesis: the exact form of the test of Q. McNemar (Psychometrika 12, 1947, pages 153-157). Of ten
classes some differ by chance: their p-values are adjusted as by S. Holm (Scandinavian Journal of Statistics 6, 1979,
pages 65-70).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.core.fashion_mnist import CLASS_NAMES
from stages.model.metrics import wilson_interval

ALPHA = 0.05
"""The level of significance: what has a smaller p-value is called real."""


@dataclass(frozen=True)
class Paired:
    """How two models classified the same examples.

    ``differing`` counts the examples with two different predictions, both incorrect ones included; ``p_value`` is that
    of McNemar's exact two-sided test on ``only_old`` and ``only_new``.
    """

    examples: int
    old_correct: int
    new_correct: int
    only_old: int
    only_new: int
    differing: int
    p_value: float

    @property
    def old_accuracy(self) -> float:
        """The fraction of the examples that old classified correctly."""
        return self.old_correct / self.examples

    @property
    def new_accuracy(self) -> float:
        """The fraction of the examples that new classified correctly."""
        return self.new_correct / self.examples

    @property
    def old_interval(self) -> tuple[float, float]:
        """The 95 % interval of old's accuracy."""
        return wilson_interval(self.old_correct, self.examples)

    @property
    def new_interval(self) -> tuple[float, float]:
        """The 95 % interval of new's accuracy."""
        return wilson_interval(self.new_correct, self.examples)

    @property
    def verdict(self) -> str:
        """What the numbers mean, as a clause."""
        if not self.differing:
            return "identical predictions"
        if self.p_value < ALPHA:
            gain = self.new_accuracy - self.old_accuracy
            direction = "better" if gain > 0 else "worse"
            return f"a real difference (p-value {p_text(self.p_value)}): new is {points(abs(gain))} {direction}"
        low, high = self.new_interval
        return (
            f"within noise (p-value {p_text(self.p_value)}): one of {self.examples} examples is "
            f"{points(1 / self.examples)}, the 95 % interval about {points((high - low) / 2)} either way"
        )


@dataclass(frozen=True)
class ClassChange:
    """How two models classified the examples of a class, and the p-value adjusted for the number of classes."""

    name: str
    paired: Paired
    adjusted_p_value: float

    @property
    def moved(self) -> bool:
        """Whether the difference is real."""
        return self.adjusted_p_value < ALPHA


def paired(actual: NDArray[np.int64], old: NDArray[np.int64], new: NDArray[np.int64]) -> Paired:
    """Compare two models' predicted labels (n,) with the labels (n,), n > 0."""
    old_correct, new_correct = old == actual, new == actual
    only_old, only_new = int((old_correct & ~new_correct).sum()), int((new_correct & ~old_correct).sum())
    return Paired(
        examples=len(actual),
        old_correct=int(old_correct.sum()),
        new_correct=int(new_correct.sum()),
        only_old=only_old,
        only_new=only_new,
        differing=int((old != new).sum()),
        p_value=mcnemar(only_old, only_new),
    )


def class_changes(actual: NDArray[np.int64], old: NDArray[np.int64], new: NDArray[np.int64]) -> list[ClassChange]:
    """Compare two models' predicted labels (n,) class by class.

    Returns:
        The classes with an example that only one model classified correctly, by the size of the change of accuracy,
        largest first. The others cannot differ by chance, so Holm's procedure need not count them.
    """
    pairs = [(k, paired(actual[of], old[of], new[of])) for k in range(len(CLASS_NAMES)) if (of := actual == k).any()]
    pairs = [(k, pair) for k, pair in pairs if pair.only_old or pair.only_new]
    adjusted = holm([pair.p_value for _, pair in pairs])
    changes = [ClassChange(CLASS_NAMES[k], pair, p) for (k, pair), p in zip(pairs, adjusted, strict=True)]
    return sorted(changes, key=lambda change: -abs(change.paired.new_accuracy - change.paired.old_accuracy))


def mcnemar(only_old: int, only_new: int) -> float:
    """Return the exact two-sided p-value of a binomial test of ``only_old`` among both, with p = 1/2."""
    if only_old == only_new:
        return 1.0
    from scipy.stats import binomtest  # here, as it takes longer than all the rest

    return float(binomtest(only_old, only_old + only_new).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values in the same order: the least of m times m, the next times m - 1; none falls."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def points(fraction: float) -> str:
    """Write a fraction in percentage points, to two significant digits at most."""
    return f"{float(f'{100 * fraction:.2g}'):g} points"


def p_text(p_value: float) -> str:
    """Write a p-value to three significant digits; the smallest have underflowed."""
    return f"{p_value:.3g}" if p_value > 1e-300 else "<1e-300"
