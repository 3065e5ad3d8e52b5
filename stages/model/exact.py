"""The dyadic grids: why every machine computes the same bits.

A float64 holds 53 bits. When all terms of a sum are multiples of 2^-k and no partial sum can reach 2^(53-k), every
partial sum fits, no addition rounds, and the order of the additions - the library's, the thread count's, the GPU's -
cannot matter. So every operand of a sum lies on such a grid, and every function that libraries round differently
(exp, log, division) is snapped to a grid far coarser than their errors. docs/reproducibility.md has the proof, its
assumptions and the margins of these exponents.

This module is NumPy; the models apply ``snap`` with their own framework's ``round``.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array", bound=Any)

K_PIXELS = 8  # X = pixels / 256
K_PARAMETERS = 26  # W, b and their updates
K_LOGITS = 20  # logits less their row's maximum
K_EXP = 22  # exp of those
K_PROBABILITIES = 24  # y_hat
K_LOSS = 20  # log of the label probability, as reported

SMALLEST_PROBABILITY = 2.0**-K_PROBABILITIES
"""One step of the grid of y_hat. It keeps the logarithm finite and, unlike a clip, the gradient alive."""


def snap(round_half_even: Callable[[Array], Array], x: Array, k: int) -> Array:
    """Round ``x`` to the nearest multiple of 2^-k, ties to even; both scalings are exact."""
    snapped: Array = round_half_even(x * 2.0**k) * 2.0**-k
    return snapped


def gradient_exponent(batch_size: int) -> int:
    """The grid on which the gradient of the mean loss of up to ``batch_size`` examples lies, for the logits."""
    return K_PROBABILITIES + (batch_size - 1).bit_length()


def parameter_limit(num_inputs: int) -> float:
    """The largest magnitude of W and b with which logits are exact: their sums must stay within 2^(53 - 8 - 26).

    (num_inputs * 255/256 + 1) * limit = 2^19: 513.5 for 1024 inputs.
    """
    return 2.0 ** (53 - K_PIXELS - K_PARAMETERS) / (num_inputs * 255 / 256 + 1)


def initial_weights(num_inputs: int, num_outputs: int, sigma: float, seed: int) -> NDArray[np.float64]:
    """Draw W, normal with standard deviation ``sigma``, on its grid; the stream is ``default_rng([seed, 0])``.

    Returns:
        (num_inputs, num_outputs), float64, without negative zeros, whose sign would depend on how a sum starts.
    """
    draws = np.random.default_rng([seed, 0]).standard_normal((num_inputs, num_outputs))
    return snap(np.round, sigma * draws, K_PARAMETERS) + 0.0
