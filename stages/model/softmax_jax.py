"""Softmax regression from scratch, in JAX: ``softmax_tensorflow.py`` under the same names, with the same bits.

Pure functions of parameters and data; one jitted epoch that scans over the minibatches and is given the parameters to
overwrite; a thin class that holds the parameters for the framework-free trainer. No flax: the model is two arrays.
The JAX lesson clips the label probability at 1e-12; here no probability is below 2^-24, which also keeps its
gradient.

Over several devices each computes on its shard of every minibatch: ``shard`` is all that is added for it. W is held
transposed, and softmax and the logits are computed with one column per example: both matrix products of a step and
the sums over classes are faster so (docs/performance.md). All functions take and return one row per example; the
transposes between them cancel in the compiled program.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from stages.model import exact
from stages.model.scaffold import Classifier

jax.config.update("jax_enable_x64", True)  # the grids need the 53 bits of a float64
jax.config.update("jax_numpy_rank_promotion", "allow")  # a bias is added to every row

snap = partial(exact.snap, jnp.round)


class Parameters(NamedTuple):
    """The state of training, float64: W held transposed (num_outputs, num_inputs), and b (num_outputs,)."""

    W_transposed: jax.Array
    b: jax.Array


def shard(arrays: Any, *axes: str) -> Any:
    """Split arrays by their ``"examples"`` over the devices of the mesh, evenly or not, or have each hold the whole.

    XLA's partitioner does the rest: each device computes on its shard, and sums over examples become all-reduces,
    whose order is free because every sum is exact. On one device there is no mesh, and this does nothing.
    """
    single_device = jax.sharding.get_abstract_mesh().empty
    return arrays if single_device else jax.lax.with_sharding_constraint(arrays, jax.P(*axes))


@jax.custom_vjp
def softmax(X: jax.Array) -> jax.Array:
    """Turn logits (n, q) into probabilities (n, q), float64: exponentiate, sum across the classes, divide.

    The row's maximum is subtracted first, so logits of +-1000 stay finite, and no probability is below 2^-24.
    """
    X = X.T  # one column per example
    X = snap(X - X.max(0), exact.K_LOGITS)
    X_exp = snap(jnp.exp(X), exact.K_EXP)
    partition = X_exp.sum(0)
    return jnp.maximum(snap(X_exp / partition, exact.K_PROBABILITIES), exact.SMALLEST_PROBABILITY).T


def softmax_forward(X: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the probabilities, and again as all that the derivative needs."""
    y_hat = softmax(X)
    return y_hat, y_hat


def softmax_backward(y_hat: jax.Array, d: jax.Array) -> tuple[jax.Array]:
    """The book's derivative, stated because differentiating through the rounded steps would not give it."""
    y_hat, d = y_hat.T, d.T  # one column per example
    return ((y_hat * (d - (d * y_hat).sum(0))).T,)


softmax.defvjp(softmax_forward, softmax_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def exact_gradient(logits: jax.Array, k: int) -> jax.Array:
    """Return ``logits`` unchanged; put the gradient that flows back through them on the grid 2^-k."""
    return logits


exact_gradient.defvjp(lambda logits, k: (logits, None), lambda k, _, d: (snap(d, k),))


def label_probability(y_hat: jax.Array, y: jax.Array) -> jax.Array:
    """Return each example's probability of its label: (n, q), (n,) -> (n,)."""
    return (jax.nn.one_hot(y, y_hat.shape[1], dtype=y_hat.dtype) * y_hat).sum(1)


def cross_entropy(y_hat: jax.Array, y: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Return the mean over examples of -log of the label probability, a scalar in nats, to be differentiated.

    With ``weights`` (n,) it is the weighted sum: 1/m for each of m examples, 0 for padding.
    """
    losses = -jnp.log(label_probability(y_hat, y))
    return losses.mean() if weights is None else (weights * losses).sum()


def exact_losses(y_hat: jax.Array, y: jax.Array) -> jax.Array:
    """Return the loss of each example (n,), on its grid: what is summed and reported."""
    return -snap(jnp.log(label_probability(y_hat, y)), exact.K_LOSS)


def compute_logits(parameters: Parameters, X: jax.Array) -> jax.Array:
    """Map images uint8 (n, height, width) to logits (n, num_outputs), exact."""
    X = X.reshape(len(X), -1)  # (n, height, width) -> (n, num_inputs)
    X = X.astype(jnp.float64) / 256  # a power of two keeps pixels exact
    return (parameters.W_transposed @ X.T + parameters.b[:, jnp.newaxis]).T


def forward(parameters: Parameters, X: jax.Array, batch_size: int) -> jax.Array:
    """Map images uint8 (n, height, width) to class probabilities (n, num_outputs)."""
    return softmax(exact_gradient(compute_logits(parameters, X), exact.gradient_exponent(batch_size)))


def training_loss(
    parameters: Parameters, X: jax.Array, y: jax.Array, weights: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Return the loss to be differentiated, and that of each example (n,) to be reported, 0 where its weight is."""
    y_hat = forward(parameters, X, batch_size)
    return cross_entropy(y_hat, y, weights), jnp.where(weights > 0, exact_losses(y_hat, y), 0)


def sgd(parameters: Parameters, gradients: Parameters, lr: jax.Array) -> Parameters:
    """Take each parameter less ``lr`` times its gradient: one product and one snap, then an exact difference."""
    return jax.tree.map(lambda p, d: p - snap(lr * d, exact.K_PARAMETERS), parameters, gradients)


# lr is an argument, not a constant, so that the compiled program cannot fold it into a matrix product's scale.
@partial(jax.jit, static_argnames="batch_size", donate_argnames="parameters")
def fit_epoch(
    parameters: Parameters, X: jax.Array, y: jax.Array, order: jax.Array, lr: jax.Array, batch_size: int
) -> tuple[Parameters, jax.Array, jax.Array]:
    """Take one step for each minibatch of ``order``: the loop is inside the compiled program.

    The last minibatch is padded with the first example at weight 0: compiling a step of another size would take longer
    than training for two epochs.
    """
    n = len(order)
    size = min(batch_size, n)
    minibatches, present = (jnp.pad(array, (0, -n % size)).reshape(-1, size) for array in (order, jnp.ones(n)))
    weights = present / present.sum(1, keepdims=True)

    def training_step(
        state: tuple[Parameters, jax.Array, Parameters], minibatch: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[Parameters, jax.Array, Parameters], None]:
        parameters, losses, largest = state
        indices, weights = shard(minibatch, "examples")
        step = jax.value_and_grad(training_loss, has_aux=True)
        (_, loss), gradients = step(parameters, X[indices], y[indices], weights, batch_size)
        parameters = sgd(parameters, gradients, lr)
        largest = jax.tree.map(jnp.maximum, largest, jax.tree.map(jnp.abs, parameters))
        return (parameters, losses + loss, largest), None

    # Summed by place in the minibatch, and the largest by place in the parameter, until the loop has ended.
    start = parameters, shard(jnp.zeros(size), "examples"), jax.tree.map(jnp.zeros_like, parameters)
    (parameters, losses, largest), _ = jax.lax.scan(training_step, start, (minibatches, weights))
    return shard((parameters, losses.sum(), jnp.maximum(*(magnitudes.max() for magnitudes in largest))))


@jax.jit
def validation_step(parameters: Parameters, X: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the logits (n, num_outputs) and the loss of each example (n,)."""
    logits = compute_logits(parameters, shard(X, "examples"))
    return shard((logits, exact_losses(softmax(logits), y)))


class SoftmaxRegressionScratch(Classifier):
    """Flatten each image, one linear layer, softmax. Parameters W (num_inputs, num_outputs) and b (num_outputs,)."""

    def __init__(
        self, num_inputs: int, num_outputs: int, lr: float, sigma: float = 0.01, *, batch_size: int = 256, seed: int = 0
    ) -> None:
        self.load(exact.initial_weights(num_inputs, num_outputs, sigma, seed), np.zeros(num_outputs))
        self.lr = lr
        self.batch_size = batch_size

    def to_device(self, array: NDArray[Any]) -> jax.Array:
        """Copy an array to the device, or to each."""
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            return jnp.asarray(array)
        # All parts of a CPU share a buffer of JAX's, which is aligned; each would copy one of NumPy's.
        shared = np.asarray(jax.device_put(array, mesh.local_devices[0]))
        return jax.make_array_from_callback(array.shape, jax.NamedSharding(mesh, jax.P()), shared.__getitem__)

    def forward(self, X: Any) -> jax.Array:
        """Map images uint8 (n, height, width) to class probabilities (n, num_outputs)."""
        return forward(self.state, jnp.asarray(X), self.batch_size)

    @property
    def W(self) -> jax.Array:
        """The weights (num_inputs, num_outputs), float64."""
        return self.state.W_transposed.T

    @property
    def b(self) -> jax.Array:
        """The biases (num_outputs,), float64."""
        return self.state.b

    def parameters(self) -> list[Any]:
        """Return [W, b]."""
        return [self.W, self.b]

    def load(self, W: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        """Replace the parameters."""
        self.state = Parameters(self.to_device(W.T), self.to_device(b))

    def fit_epoch(self, X: Any, y: Any, order: Any) -> tuple[Any, Any]:
        """Take one step for each minibatch of ``order``."""
        self.state, loss, largest = fit_epoch(self.state, X, y, order, self.lr, self.batch_size)
        return loss, largest

    def validation_step(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Return the logits (n, num_outputs) and the loss of each example (n,)."""
        return validation_step(self.state, X, y)
