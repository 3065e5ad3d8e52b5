"""Softmax regression from scratch, in TensorFlow. ``softmax_jax.py`` is the same lesson in JAX, with the same bits.

Next to the book (Dive into Deep Learning, section 4.4) each ``snap`` is what is added: it puts a result on a dyadic
grid so that every sum is exact in any order (``exact.py`` says why). With the committed params.yaml ten epochs reach a
validation accuracy of 0.8217 on every machine, to the last bit of every parameter.

W is held transposed, and only there: both matrix products of a step are faster so (docs/performance.md).
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stages.model import exact
from stages.model.scaffold import Classifier

snap = partial(exact.snap, tf.round)


@tf.custom_gradient
def softmax(X: Any) -> Any:
    """Turn logits (n, q) into probabilities (n, q), float64: exponentiate, sum across the classes, divide.

    The row's maximum is subtracted first (the book's exercise 4.4.1), so logits of +-1000 stay finite, and no
    probability is below 2^-24. The derivative is the book's, y_hat * (d - sum(d * y_hat)), stated because
    differentiating through the rounded steps would not give it.
    """
    X = snap(X - tf.reduce_max(X, 1, keepdims=True), exact.K_LOGITS)
    X_exp = snap(tf.exp(X), exact.K_EXP)
    partition = tf.reduce_sum(X_exp, 1, keepdims=True)
    y_hat = tf.maximum(snap(X_exp / partition, exact.K_PROBABILITIES), exact.SMALLEST_PROBABILITY)
    return y_hat, lambda d: y_hat * (d - tf.reduce_sum(d * y_hat, 1, keepdims=True))


def label_probability(y_hat: Any, y: Any) -> Any:
    """Return each example's probability of its label: (n, q), (n,) -> (n,)."""
    return tf.reduce_sum(tf.one_hot(y, y_hat.shape[1], dtype=tf.float64) * y_hat, 1)


def cross_entropy(y_hat: Any, y: Any, weights: Any = None) -> Any:
    """Return the mean over examples of -log of the label probability, a scalar in nats, to be differentiated.

    With ``weights`` (n,) it is the weighted sum: 1/m for each of m examples, 0 for padding.
    """
    losses = -tf.math.log(label_probability(y_hat, y))
    return tf.reduce_mean(losses) if weights is None else tf.reduce_sum(weights * losses)


def exact_losses(y_hat: Any, y: Any) -> Any:
    """Return the loss of each example (n,), on its grid: what is summed and reported."""
    return -snap(tf.math.log(label_probability(y_hat, y)), exact.K_LOSS)


def exact_gradient(logits: Any, k: int) -> Any:
    """Return ``logits`` unchanged; put the gradient that flows back through them on the grid 2^-k."""
    identity = tf.custom_gradient(lambda o: (tf.identity(o), lambda d: snap(d, k)))
    return identity(logits)


class SGD:
    """Minibatch stochastic gradient descent: each parameter less ``lr`` times its gradient."""

    def __init__(self, lr: float) -> None:
        # A variable, so that the compiled program cannot fold the number into a matrix product's scale.
        self.lr = tf.Variable(lr, trainable=False, dtype=tf.float64)

    def apply_gradients(self, gradients: Iterable[Any], parameters: Iterable[Any]) -> None:
        """Update the parameters in place: one product and one snap, then an exact difference."""
        for gradient, parameter in zip(gradients, parameters, strict=True):
            parameter.assign_sub(snap(self.lr * gradient, exact.K_PARAMETERS))


class SoftmaxRegressionScratch(Classifier):
    """Flatten each image, one linear layer, softmax. Parameters W (num_inputs, num_outputs) and b (num_outputs,).

    Not a ``tf.keras.Model``: under Keras 3 that does not see a ``tf.Variable`` attribute, so nothing would train.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, lr: float, sigma: float = 0.01, *, batch_size: int = 256, seed: int = 0
    ) -> None:
        self.W_transposed = tf.Variable(exact.initial_weights(num_inputs, num_outputs, sigma, seed).T)
        self.b = tf.Variable(tf.zeros(num_outputs, tf.float64))
        self.batch_size = batch_size
        self.optimizer = self.configure_optimizers(lr)

    def to_device(self, array: NDArray[Any]) -> Any:
        """Copy an array to the device."""
        return tf.constant(array)

    @property
    def W(self) -> Any:
        """The weights (num_inputs, num_outputs), float64. Compiled programs read them as they are held."""
        return tf.transpose(self.W_transposed)

    def parameters(self) -> list[Any]:
        """Return [W, b]."""
        return [self.W, self.b]

    def load(self, W: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        """Replace the parameters."""
        self.W_transposed.assign(W.T)
        self.b.assign(b)

    def configure_optimizers(self, lr: float) -> SGD:
        """Return the optimizer of the training steps."""
        return SGD(lr)

    def logits(self, X: Any) -> Any:
        """Map images uint8 (n, height, width) to logits (n, num_outputs), exact."""
        X = tf.reshape(X, (-1, self.W_transposed.shape[1]))  # (n, height, width) -> (n, num_inputs)
        X = tf.cast(X, tf.float64) / 256  # a power of two keeps pixels exact
        return tf.matmul(X, self.W) + self.b

    def forward(self, X: Any) -> Any:
        """Map images uint8 (n, height, width) to class probabilities (n, num_outputs)."""
        return softmax(exact_gradient(self.logits(X), exact.gradient_exponent(self.batch_size)))

    def loss(self, y_hat: Any, y: Any, weights: Any = None) -> Any:
        """Return the loss to be differentiated."""
        return cross_entropy(y_hat, y, weights)

    def training_step(self, X: Any, y: Any, weights: Any) -> Any:
        """Take one step on a minibatch; return the loss of each example (n,) before the step, 0 where its weight is."""
        variables = self.W_transposed, self.b
        with tf.GradientTape() as tape:
            y_hat = self.forward(X)
            loss = self.loss(y_hat, y, weights)
        self.optimizer.apply_gradients(tape.gradient(loss, variables), variables)
        return tf.where(weights > 0, exact_losses(y_hat, y), 0)

    @tf.function(jit_compile=True, autograph=False)  # nothing to convert, which would take longer than to compile
    def fit_epoch(self, X: Any, y: Any, order: Any) -> tuple[Any, Any]:
        """Take one step for each minibatch of ``order``: the loop is inside the compiled program.

        The last minibatch is padded with the first example at weight 0: compiling a step of another size would take
        longer than training for two epochs.
        """
        n = order.shape[0]
        size = min(self.batch_size, n)
        minibatches, present = (
            tf.reshape(tf.pad(array, [[0, -n % size]]), (-1, size)) for array in (order, tf.ones(n, tf.float64))
        )
        weights = present / tf.reduce_sum(present, 1, keepdims=True)

        def step(i: Any, losses: Any, largest: Any) -> tuple[Any, Any, Any]:
            X_batch, y_batch = tf.gather(X, minibatches[i]), tf.gather(y, minibatches[i])
            losses += self.training_step(X_batch, y_batch, weights[i])
            pairs = zip(largest, (self.W_transposed, self.b), strict=True)
            return i + 1, losses, [tf.maximum(so_far, tf.abs(parameter)) for so_far, parameter in pairs]

        # Summed by place in the minibatch, and the largest by place in the parameter, until the loop has ended.
        start = 0, tf.zeros(size, tf.float64), [tf.zeros_like(self.W_transposed), tf.zeros_like(self.b)]
        _, losses, largest = tf.while_loop(lambda i, *_: i < minibatches.shape[0], step, start)
        return tf.reduce_sum(losses), tf.maximum(*map(tf.reduce_max, largest))

    @tf.function(jit_compile=True, autograph=False)
    def validation_step(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Return the logits (n, num_outputs) and the loss of each example (n,)."""
        logits = self.logits(X)
        return logits, exact_losses(softmax(logits), y)
