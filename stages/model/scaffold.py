"""The book's scaffold, framework-free: a ``Trainer`` fits a ``Module`` to a ``DataModule``.

Two things differ from the book (Dive into Deep Learning, section 3.2). The trainer hands over epochs, not minibatches:
an epoch is one compiled call on data that stay on the device. And losses and accuracies are sums over examples, divided
once, where the book averages over minibatches of unequal size.

Every class is either abstract or final, and no concrete method is overridden.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.core.command import UserError
from stages.model.exact import parameter_limit


class Split(NamedTuple):
    """Examples with their labels: images uint8 (n, height, width), labels uint8 (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


class Epoch(NamedTuple):
    """One row of the training history: mean losses in nats and the fraction of correct validation examples."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float


class DataModule(ABC):
    """A data set in two splits, and the order in which its training examples are visited."""

    train: Split
    validation: Split
    batch_size: int

    @abstractmethod
    def shuffle(self) -> NDArray[np.int32]:
        """Draw the order of one epoch: the training examples' indices (n,); consecutive slices are its minibatches."""

    def train_dataloader(self) -> Iterator[Split]:
        """Yield the minibatches ``(X, y)`` of an epoch; the last may be short."""
        return self.minibatches(self.train, self.shuffle())

    def val_dataloader(self) -> Iterator[Split]:
        """Yield the minibatches ``(X, y)`` of the validation split in its own order; the last may be short."""
        return self.minibatches(self.validation, np.arange(len(self.validation.labels), dtype=np.int32))

    def minibatches(self, split: Split, order: NDArray[np.int32]) -> Iterator[Split]:
        """Yield the examples of ``split`` in an ``order`` (n,), ``batch_size`` at a time."""
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            yield Split(split.images[indices], split.labels[indices])


class Module(ABC):
    """A model: its parameters, its loss, its optimizer, and one compiled epoch of training steps.

    ``X``, ``y`` and all returned tensors are the framework's own, on its device; see ``to_device``.
    """

    def __call__(self, X: Any) -> NDArray[np.float64]:
        """Return ``forward``'s output for images uint8 (n, height, width) as a NumPy array."""
        return np.asarray(self.forward(X))

    @abstractmethod
    def forward(self, X: Any) -> Any:
        """Map images uint8 (n, height, width) to class probabilities (n, num_outputs)."""

    @abstractmethod
    def to_device(self, array: NDArray[Any]) -> Any:
        """Copy an array to the device, where it stays."""

    @abstractmethod
    def parameters(self) -> list[Any]:
        """Return the parameters, stated rather than discovered: W (num_inputs, num_outputs) and b (num_outputs,)."""

    @abstractmethod
    def load(self, W: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        """Replace the parameters."""

    @abstractmethod
    def fit_epoch(self, X: Any, y: Any, order: Any) -> tuple[Any, Any]:
        """Take one training step for each minibatch of ``order``.

        Returns:
            The sum of the examples' losses, each as it was before its step, and the largest magnitude that a
            parameter had after any step.
        """

    @abstractmethod
    def validation_step(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Return the logits (n, num_outputs) and the loss of each example (n,)."""


class Classifier(Module):
    """A module whose outputs are classes: it adds prediction."""

    def predict(self, X: Any, y: Any) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Classify examples that are on the device.

        Returns:
            The predicted class and the loss of each example, both (n,). The class is decided in NumPy, on exact
            logits: the first of equal ones, which frameworks do not promise. The losses are on a grid: sum them in
            any order.
        """
        logits, losses = self.validation_step(X, y)
        return np.asarray(logits).argmax(axis=1), np.asarray(losses)


class Trainer:
    """Fits a classifier for ``max_epochs``, with a validation after each; ``silent`` where another process logs."""

    def __init__(self, max_epochs: int, *, silent: bool = False) -> None:
        self.max_epochs = max_epochs
        self.silent = silent

    def prepare(self, model: Classifier, data: DataModule) -> None:
        """Copy both splits to the model's device, where they stay.

        Raises:
            UserError: An initial parameter is outside the range in which the arithmetic is exact.
        """
        self.model, self.data = model, data
        self.X, self.y = (model.to_device(array) for array in data.train)
        self.validation = tuple(model.to_device(array) for array in data.validation)
        self.check_range(max(float(np.abs(np.asarray(p)).max()) for p in model.parameters()), "before the first epoch")

    def fit(self, model: Classifier, data: DataModule) -> list[Epoch]:
        """Train, showing a progress bar with each epoch's losses and accuracy, or one line per epoch in a log.

        Raises:
            UserError: A parameter left the range in which the arithmetic is exact.
        """
        self.prepare(model, data)
        history: list[Epoch] = []
        width = shutil.get_terminal_size().columns  # a terminal that reports no size would get an empty line
        hidden = self.silent or None  # tqdm hides the bar itself in a log
        with tqdm(range(1, self.max_epochs + 1), desc="train", unit="epoch", ncols=width, disable=hidden) as epochs:
            for epoch in epochs:
                history.append(Epoch(epoch, self.fit_epoch(epoch), *self.validate()))
                row = {name: f"{value:.4f}" for name, value in history[-1]._asdict().items() if name != "epoch"}
                epochs.set_postfix(row)
                if epochs.disable and not self.silent:
                    print(f"train: epoch {epoch}/{self.max_epochs}", *(f"{k} {v}" for k, v in row.items()), flush=True)
        return history

    def fit_epoch(self, epoch: int) -> float:
        """Train for one epoch; return the mean loss, each example's as it was before its step."""
        loss, largest = self.model.fit_epoch(self.X, self.y, self.model.to_device(self.data.shuffle()))
        self.check_range(float(largest), f"in epoch {epoch}")
        return float(loss) / len(self.data.train.labels)

    def validate(self) -> tuple[float, float]:
        """Return mean loss and accuracy on the validation split."""
        predicted, losses = self.model.predict(*self.validation)
        correct = int((predicted == self.data.validation.labels).sum())
        return float(losses.sum()) / len(losses), correct / len(losses)

    def check_range(self, largest: float, when: str) -> None:
        """Raise ``UserError`` if a parameter is too large for exact logits, or is not a number.

        Within the range the loss is finite, since no probability is below 2^-24; so divergence shows here.
        """
        limit = parameter_limit(self.model.parameters()[0].shape[0])
        if not largest <= limit:
            raise UserError(
                f"{when}: expected parameters of magnitude up to {limit:.1f}, beyond which the arithmetic is not "
                f"exact, found {largest:.1f}: training diverged: lower train.lr or train.sigma in params.yaml"
            )
