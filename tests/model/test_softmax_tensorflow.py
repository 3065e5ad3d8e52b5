"""The lesson in both frameworks: the book's golden numbers, closed forms, and the oracle's bits."""

import importlib
import math
from typing import Any

import numpy as np
import pytest

from stages.model import exact
from stages.model.frameworks import MODULES
from stages.runtime import devices
from tools.proof import oracle

RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (300, 6, 5), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 300, dtype=np.uint8)


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def lesson(request: pytest.FixtureRequest) -> Any:
    devices.start(request.param, "cpu")
    module: Any = importlib.import_module(MODULES[request.param])
    module.framework = request.param
    return module


def logits_gradient(
    lesson: Any, logits: np.ndarray, y: np.ndarray, k: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """The gradient of the mean cross-entropy at the logits (n, q), by automatic differentiation."""
    if lesson.framework == "jax":
        import jax

        loss = lambda o: lesson.cross_entropy(lesson.softmax(lesson.exact_gradient(o, k)), y, weights)  # noqa: E731
        return np.asarray(jax.grad(loss)(jax.numpy.asarray(logits)))
    import tensorflow as tf

    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = lesson.cross_entropy(lesson.softmax(lesson.exact_gradient(variable, k)), y, weights)
    return tape.gradient(loss, variable).numpy()


def test_softmax_rows_are_non_negative_and_sum_to_one(lesson: Any) -> None:
    X_prob = np.asarray(lesson.softmax(np.random.default_rng(0).random((2, 5))))

    assert X_prob.shape == (2, 5)
    assert (X_prob > 0).all()
    # Each of the five probabilities is rounded by at most half a step of the grid.
    assert (np.abs(X_prob.sum(axis=1) - 1) <= 5 * 2.0**-25).all()


def test_softmax_of_extreme_logits_is_finite_and_never_below_one_step(lesson: Any) -> None:
    y_hat = np.asarray(lesson.softmax(np.array([[1000.0, -1000.0, 0.0], [-1000.0, -1000.0, -1000.0]])))

    assert y_hat[0].tolist() == [1.0, 2.0**-24, 2.0**-24]
    assert y_hat[1].tolist() == [round(2**24 / 3) / 2**24] * 3


def test_softmax_does_not_change_when_all_logits_shift(lesson: Any) -> None:
    X = exact.snap(np.round, np.random.default_rng(1).standard_normal((20, 10)), 26)

    assert np.array_equal(lesson.softmax(X), lesson.softmax(X + 64))


def test_cross_entropy_of_the_book_s_two_examples(lesson: Any) -> None:
    y_hat, y = np.array([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]]), np.array([0, 2])

    assert np.asarray(lesson.label_probability(y_hat, y)).tolist() == [0.1, 0.5]
    # Two logarithms, each within two units in the last place, and one division.
    loss = float(lesson.cross_entropy(y_hat, y))
    assert loss == pytest.approx(-(math.log(0.1) + math.log(0.5)) / 2, rel=1e-15)
    assert np.float32(loss) == np.float32(1.4978662)  # as the book's float32 prints it
    assert float(lesson.cross_entropy(y_hat, y, np.array([0.0, 1.0]))) == pytest.approx(-math.log(0.5), rel=1e-15)


def test_loss_at_zero_weights_is_the_logarithm_of_the_number_of_classes(lesson: Any) -> None:
    model = lesson.SoftmaxRegressionScratch(30, 10, lr=0.1, sigma=0)
    _, losses = model.validation_step(model.to_device(IMAGES), model.to_device(LABELS))

    # p = 0.1 is rounded by at most 2^-25, and -log p by at most 2^-21.
    assert np.abs(np.asarray(losses) - math.log(10)).max() <= 10 * 2.0**-25 + 2.0**-21


def test_cross_entropy_agrees_with_the_framework_s_own(lesson: Any) -> None:
    logits = np.random.default_rng(2).uniform(-2, 2, (50, 10))
    y = LABELS[:50].astype(np.int32)
    if lesson.framework == "jax":
        import jax

        own = -jax.nn.log_softmax(logits)[np.arange(50), y].mean()
    else:
        import tensorflow as tf

        own = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))

    # Logits round by 2^-21, exponentials >= e^-4 by 2^-23 and probabilities >= e^-4/10 by 2^-25.
    bound = 2 * (2.0**-21 + math.e**4 * 2.0**-23) + 10 * math.e**4 * 2.0**-25
    assert abs(float(lesson.cross_entropy(lesson.softmax(logits), y)) - float(own)) <= bound


@pytest.mark.parametrize("m", [1, 96])
def test_gradient_at_the_logits_is_the_closed_form_to_the_bit(lesson: Any, m: int) -> None:
    logits = exact.snap(np.round, 3 * np.random.default_rng(m).standard_normal((m, 10)), 26)
    y = np.random.default_rng(m).integers(0, 10, m)
    k = exact.gradient_exponent(m)
    onehot = np.eye(10)[y]

    expected = oracle.snap((oracle.softmax(logits) - onehot) / m, k)
    assert logits_gradient(lesson, logits, y, k).tobytes() == (expected + 0.0).tobytes()


@pytest.mark.parametrize("m", [1, 255])
def test_padding_leaves_the_gradient_of_its_examples_as_it_is(lesson: Any, m: int) -> None:
    logits = exact.snap(np.round, 3 * np.random.default_rng(m).standard_normal((256, 10)), 26)
    y, weights = np.random.default_rng(m).integers(0, 10, 256), (np.arange(256) < m) / m
    k = exact.gradient_exponent(256)

    alone = logits_gradient(lesson, logits[:m], y[:m], k)
    padded = logits_gradient(lesson, logits, y, k, weights)
    assert padded[:m].tobytes() == alone.tobytes()
    assert not padded[m:].any()


def test_gradient_of_a_hopeless_example_is_alive(lesson: Any) -> None:
    gradient = logits_gradient(lesson, np.array([[1000.0, -1000.0]]), np.array([1]), 24)

    assert gradient.tolist() == [[1.0, 2.0**-24 - 1]]


def test_initial_parameters_have_the_oracle_s_bits(lesson: Any) -> None:
    W, b = lesson.SoftmaxRegressionScratch(30, 10, lr=0.1, sigma=0.01, seed=3).parameters()

    assert np.asarray(W).shape == (30, 10)
    assert np.asarray(W).dtype == np.asarray(b).dtype == np.float64
    assert np.asarray(b).tolist() == [0] * 10


@pytest.mark.parametrize(
    ("batch_size", "seed", "lr", "sigma"),
    [(1, 5, 0.1, 0.01), (7, 0, 1.7, 0.0), (256, 1, 0.1, 0.01), (300, 2**32 - 1, 1.7, 0.1), (60_000, 5, 0.1, 0.01)],
)
def test_training_has_the_oracle_s_bits(lesson: Any, batch_size: int, seed: int, lr: float, sigma: float) -> None:
    model = lesson.SoftmaxRegressionScratch(30, 10, lr, sigma, batch_size=batch_size, seed=seed)
    X, y, rng = model.to_device(IMAGES), model.to_device(LABELS), np.random.default_rng([seed, 1])
    orders = (model.to_device(rng.permutation(300).astype(np.int32)) for _ in range(2))
    losses = [float(model.fit_epoch(X, y, order)[0]) / 300 for order in orders]

    expected = oracle.train(IMAGES, LABELS, epochs=2, batch_size=batch_size, seed=seed, lr=lr, sigma=sigma)
    W, b = (np.asarray(parameter) for parameter in model.parameters())
    assert (W.tobytes(), b.tobytes()) == (expected.W.tobytes(), expected.b.tobytes())
    assert losses == expected.losses


def test_largest_parameter_of_an_epoch_is_that_of_its_worst_step(lesson: Any) -> None:
    def after(steps: int) -> tuple[float, float]:
        model = lesson.SoftmaxRegressionScratch(30, 10, lr=1.0, sigma=0, batch_size=1)
        order = model.to_device(np.arange(8, 8 + steps, dtype=np.int32))
        _, largest = model.fit_epoch(model.to_device(IMAGES), model.to_device(LABELS), order)
        return float(largest), max(float(np.abs(np.asarray(parameter)).max()) for parameter in model.parameters())

    largest, magnitudes = zip(*(after(steps) for steps in (1, 2, 3)), strict=True)
    assert magnitudes[-1] < max(magnitudes)  # or the test would show nothing
    assert list(largest) == [max(magnitudes[: step + 1]) for step in range(3)]


def test_loaded_parameters_classify(lesson: Any) -> None:
    model = lesson.SoftmaxRegressionScratch(30, 10, lr=0.0, sigma=0.0)
    W = exact.initial_weights(30, 10, 0.1, 11)
    model.load(W, np.arange(10.0))
    logits, losses = model.validation_step(model.to_device(IMAGES), model.to_device(LABELS))

    expected = IMAGES.reshape(300, -1) / 256 @ W + np.arange(10.0)
    assert np.asarray(logits).tobytes() == expected.tobytes()
    p = oracle.softmax(expected)[np.arange(300), LABELS]
    assert np.asarray(losses).tobytes() == (-oracle.snap(np.log(p), 20)).tobytes()
