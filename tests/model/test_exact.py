"""The grids, the assumptions behind them, and what happens when they are broken."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.model import exact
from stages.runtime import devices
from tools.proof import assumptions, oracle, verify

SMALL = np.random.default_rng(3)
IMAGES = SMALL.integers(0, 256, (600, 8, 8), dtype=np.uint8)
LABELS = SMALL.integers(0, 10, 600, dtype=np.uint8)
HYPER = {"seed": 0, "epochs": 3, "batch_size": 96, "lr": 0.5, "sigma": 0.01}


class Chaos(np.ndarray):
    """An array whose exp, log, division and sums err and reorder as far as the proof allows, times ``scale``."""

    scale = 1.0
    rng = np.random.default_rng(0)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [np.asarray(x) if isinstance(x, Chaos) else x for x in inputs]
        if ufunc is np.matmul:
            result = self.shuffled_product(*arrays)
        elif ufunc is np.add and method == "reduce":
            (array,), axis = arrays, options["axis"] or 0
            result = np.add.reduce(self.rng.permuted(array, axis=axis), **options)
        else:
            result = getattr(ufunc, method)(*arrays, **options)
            errors = {np.exp: 1000 * 2.0**-52, np.log: 200 * 2.0**-52, np.true_divide: 2.0**-47.1}
            if ufunc in errors and not (ufunc is np.true_divide and np.ndim(arrays[1]) == 0):
                result *= 1 + self.scale * errors[ufunc] * self.rng.uniform(-1, 1, result.shape)
        return result.view(Chaos) if isinstance(result, np.ndarray) else result

    def shuffled_product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The product as three partial products over shuffled terms, added in any order."""
        parts = [a[:, chosen] @ b[chosen] for chosen in np.array_split(self.rng.permutation(len(b)), 3)]
        return parts[2] + parts[0] + parts[1]


def chaotic_run(monkeypatch: pytest.MonkeyPatch, scale: float) -> oracle.Run:
    monkeypatch.setattr(Chaos, "scale", scale)
    return oracle.train(IMAGES.view(Chaos), LABELS, **HYPER)


def test_any_order_of_sums_and_any_error_within_the_margins_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm, chaotic = oracle.train(IMAGES, LABELS, **HYPER), chaotic_run(monkeypatch, scale=1)

    assert isinstance(chaotic.W, Chaos)
    assert chaotic.W.tobytes() == calm.W.tobytes()
    assert chaotic.b.tobytes() == calm.b.tobytes()
    assert chaotic.losses == calm.losses


def test_errors_far_beyond_the_margins_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    calm, chaotic = oracle.train(IMAGES, LABELS, **HYPER), chaotic_run(monkeypatch, scale=1e6)

    assert chaotic.W.tobytes() != calm.W.tobytes()


def test_without_the_grids_the_order_of_a_sum_changes_its_bits() -> None:
    terms = np.random.default_rng(0).standard_normal(1000)
    shuffled = np.random.default_rng(1).permutation(terms)

    assert np.cumsum(terms)[-1] != np.cumsum(shuffled)[-1]
    assert np.cumsum(oracle.snap(terms, 40))[-1] == np.cumsum(oracle.snap(shuffled, 40))[-1]


@pytest.mark.parametrize("implementation", verify.IMPLEMENTATIONS)
def test_assumptions_of_the_proof_hold_in_every_implementation(implementation: str) -> None:
    if implementation != "numpy":
        devices.start(implementation.split("-")[0], "cpu")

    assert assumptions.failed_assumptions(assumptions.operations(implementation)) == []


@pytest.mark.parametrize(
    ("broken", "assumption"),
    [
        ({"round": lambda x: np.floor(x + 0.5)}, "A1: rounding half to even"),
        ({"exp": lambda x: np.exp(x) * (1 + 2500 * 2.0**-52)}, "A4: exp"),
        ({"log": lambda x: np.log(x) * (1 + 5000 * 2.0**-52)}, "A4: log"),
        ({"compile": lambda function: lambda *a: function(*(np.float32(x) for x in a))}, "A4: division"),
        ({"compile": lambda function: lambda *a: function(*(np.float32(x) for x in a))}, "A2: exact sums"),
    ],
)
def test_a_broken_operation_is_named_by_its_assumption(broken: dict[str, Any], assumption: str) -> None:
    failed = assumptions.failed_assumptions(assumptions.operations("numpy")._replace(**broken))

    assert any(name.startswith(assumption) for name in failed)


def test_quotients_at_the_margin_are_as_near_to_a_boundary_as_fractions_can_be() -> None:
    a, s, _ = (array.astype(object) for array in assumptions.quotients_at_the_margin())
    distance = np.array([min(r := int(x) * 2**25 % int(y), int(y) - r) for x, y in zip(a, s, strict=True)])

    assert len(a) > 5000
    assert set(distance) <= {0, 1}
    assert (a <= 2**22).all()


@pytest.mark.parametrize(
    ("x", "k", "expected"),
    [(0.5, 0, 0.0), (1.5, 0, 2.0), (2.5, 0, 2.0), (-0.5, 0, 0.0), (0.375, 2, 0.5), (0.3, 1, 0.5)],
)
def test_snap_rounds_to_the_grid_and_half_to_even(x: float, k: int, expected: float) -> None:
    assert exact.snap(np.round, np.float64(x), k) == expected


@pytest.mark.parametrize(("batch_size", "k"), [(1, 24), (2, 25), (3, 26), (4, 26), (255, 32), (256, 32), (257, 33)])
def test_gradient_exponent_grows_with_the_logarithm_of_the_batch(batch_size: int, k: int) -> None:
    assert exact.gradient_exponent(batch_size) == k


@pytest.mark.parametrize("num_inputs", [784, 1024, 16384])
def test_logits_are_exact_at_the_parameter_limit_and_not_beyond(num_inputs: int) -> None:
    limit = exact.parameter_limit(num_inputs)
    largest_sum = (num_inputs * 255 / 256 + 1) * limit

    assert largest_sum == pytest.approx(2.0**19, rel=1e-15)  # one rounding of the limit itself
    assert 2.0**19 + 2.0**-34 == 2.0**19  # a step of the logits' grid is lost there
    assert 2.0**19 - 2.0**-34 < 2.0**19  # and kept below


def test_initial_weights_lie_on_the_grid_without_negative_zeros() -> None:
    W = exact.initial_weights(1024, 10, sigma=1e-8, seed=0)

    assert (W == 0).any()
    assert not np.signbit(W[W == 0]).any()
    assert np.array_equal(W * 2.0**26, np.rint(W * 2.0**26))


def test_bits_of_the_table_of_sizes_are_those_of_the_grids() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/reproducibility.md").read_text()
    table = re.search(r"^\| examples n \|.*\n.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table
    for line in table[1].splitlines():
        n, m, d, pixel_bits, q, *found = (float(cell.strip(" *").replace(",", "")) for cell in line.split("|")[1:-1])
        limit = 2 ** (53 - pixel_bits - exact.K_PARAMETERS) / (d * (1 - 2**-pixel_bits) + 1)
        gradients = pixel_bits + exact.gradient_exponent(int(m))
        exponentials = exact.K_EXP + math.log2(q)
        losses = exact.K_LOSS + math.log2(-math.log(exact.SMALLEST_PROBABILITY) * n)
        assert found == [round(limit, 1), gradients, round(exponentials, 1), round(losses, 1)]
