"""The lesson in the framework of choice: the one place that builds the model."""

import importlib

from stages.core.fashion_mnist import CLASS_NAMES
from stages.model.scaffold import Classifier

MODULES = {"tensorflow": "stages.model.softmax_tensorflow", "jax": "stages.model.softmax_jax"}


def softmax_regression(
    framework: str, num_inputs: int, lr: float = 0.0, sigma: float = 0.0, *, batch_size: int = 256, seed: int = 0
) -> Classifier:
    """Build softmax regression for the ten classes in a framework that ``runtime.devices.start`` has started.

    Args:
        framework: ``tensorflow`` or ``jax``.
        num_inputs: Pixels of an image.
        lr: Learning rate; a model that only predicts takes no step.
        sigma: Standard deviation of the initial weights.
        batch_size: Examples in a minibatch.
        seed: Of the initial weights.
    """
    module = importlib.import_module(MODULES[framework])
    model: Classifier = module.SoftmaxRegressionScratch(
        num_inputs, len(CLASS_NAMES), lr, sigma, batch_size=batch_size, seed=seed
    )
    return model
