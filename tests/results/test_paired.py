"""The statistics of a comparison: counts, p-values and what they are said to mean."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tools.results.paired import Paired, class_changes, holm, mcnemar, paired

LABELS = st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=60).map(lambda rows: np.array(rows).T)
COUNTS = st.integers(0, 300)
REPEATABLE = settings(derandomize=True, deadline=None)


@REPEATABLE
@given(COUNTS, COUNTS)
def test_the_p_value_is_the_tail_of_the_binomial_distribution_doubled(only_old: int, only_new: int) -> None:
    n = only_old + only_new
    tail = sum(math.comb(n, k) for k in range(min(only_old, only_new) + 1))

    assert mcnemar(only_old, only_new) == pytest.approx(float(min(Fraction(2 * tail, 2**n), Fraction(1))), rel=1e-9)


@REPEATABLE
@given(LABELS)
def test_the_counts_and_intervals_are_those_of_the_examples(labels: NDArray[np.int64]) -> None:
    from scipy.stats import binomtest  # here, as in the tool: it takes longer than all the rest

    actual, old, new = labels
    pair = paired(actual, old, new)

    triples = list(zip(*labels.tolist(), strict=True))
    assert pair.examples == len(triples)
    assert pair.old_correct == sum(a == o for a, o, _ in triples)
    assert pair.new_correct == sum(a == n for a, _, n in triples)
    assert pair.only_old == sum(a == o != n for a, o, n in triples)
    assert pair.only_new == sum(a == n != o for a, o, n in triples)
    assert pair.differing == sum(o != n for _, o, n in triples)
    assert (pair.old_accuracy, pair.new_accuracy) == (np.mean(actual == old), np.mean(actual == new))
    for correct, interval in ((pair.old_correct, pair.old_interval), (pair.new_correct, pair.new_interval)):
        expected = binomtest(correct, pair.examples).proportion_ci(method="wilson")
        assert interval == pytest.approx((expected.low, expected.high), abs=1e-12)


@REPEATABLE
@given(st.lists(st.floats(0, 1), max_size=10), st.floats(0, 0.99))
def test_holm_s_adjusted_p_values_reject_what_his_sequential_procedure_rejects(
    p_values: list[float], alpha: float
) -> None:
    rejected = set()
    for rank, (p, i) in enumerate(sorted((p, i) for i, p in enumerate(p_values))):
        if p * (len(p_values) - rank) > alpha:
            break
        rejected.add(i)

    assert {i for i, adjusted in enumerate(holm(p_values)) if adjusted <= alpha} == rejected


def test_holm_s_procedure_on_an_example_worked_by_hand() -> None:
    # In ascending order 0.01 * 4, 0.02 * 3, 0.03 * 2 and 0.5 * 1: the third, 0.06, is not below the second.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]


def test_only_classes_that_could_differ_are_compared_and_move_by_their_adjusted_p_values() -> None:
    actual = np.arange(600) % 10
    old, new = actual.copy(), actual.copy()
    for k, errors in ((0, 12), (1, 5), (2, 6)):
        new[k : 10 * errors : 10] = 9
    old[4], new[4] = 8, 9  # both incorrect: no example of coat that only one model classifies correctly

    changes = class_changes(actual, old, new)
    assert [(change.name, change.paired.only_old) for change in changes] == [
        ("t-shirt", 12),
        ("pullover", 6),
        ("trouser", 5),
    ]
    assert [change.paired.p_value for change in changes] == pytest.approx([2 / 2**12, 2 / 2**6, 2 / 2**5])
    assert [change.adjusted_p_value for change in changes] == pytest.approx([3 * 2 / 2**12, 2 * 2 / 2**6, 2 / 2**5])
    assert [change.moved for change in changes] == [True, False, False]
    assert {change.paired.examples for change in changes} == {60}


@pytest.mark.parametrize(
    ("examples", "old_correct", "only_old", "only_new", "differing", "verdict"),
    [
        (
            256,
            214,
            2,
            4,
            6,
            "within noise (p-value 0.688): one of 256 examples is 0.39 points, the 95 % interval about 4.4 points "
            "either way",
        ),
        (
            10_000,
            1,
            1,
            0,
            1,
            "within noise (p-value 1): one of 10000 examples is 0.01 points, the 95 % interval about ",
        ),
        (1000, 800, 10, 30, 40, "a real difference (p-value 0.00222): new is 2 points better"),
        (1000, 800, 30, 10, 40, "a real difference (p-value 0.00222): new is 2 points worse"),
        (256, 200, 0, 5, 5, "within noise (p-value 0.0625): "),  # 2 / 2^5
        (256, 200, 0, 6, 6, "a real difference (p-value 0.0312): "),  # 2 / 2^6
        (256, 200, 0, 0, 0, "identical predictions"),
        (256, 200, 0, 0, 1, "within noise (p-value 1): "),  # both incorrect, differently
        (10_000, 1000, 0, 5000, 5000, "a real difference (p-value <1e-300): "),  # it has underflowed
    ],
)
def test_the_verdict_says_what_the_numbers_mean(
    examples: int, old_correct: int, only_old: int, only_new: int, differing: int, verdict: str
) -> None:
    new_correct, p_value = old_correct - only_old + only_new, mcnemar(only_old, only_new)
    pair = Paired(examples, old_correct, new_correct, only_old, only_new, differing, p_value)

    assert pair.verdict.startswith(verdict)
