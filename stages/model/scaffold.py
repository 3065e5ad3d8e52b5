"""The book's scaffold, framework-free: a ``Trainer`` fits a ``Module`` to a ``DataModule``.

Two things differ from the book (Dive into Deep Learning, section 3.2). The epoch, not the minibatch, is the unit the
trainer hands over: it is one compiled call on data that stay on the device. And losses and accuracies are sums over
examples, divided once, where the book averages over minibatches of unequal size.

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
    """One row of the training history: mean losses (nats) and the share of validation examples classified rightly."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float


class DataModule(ABC):
    """A data set in two splits and the order in which its training examples are visited."""

    train: Split
    validation: Split
    batch_size: int

    @abstractmethod
    def train_dataloader(self) -> NDArray[np.int32]:
        """Draw an epoch: the training examples' indices (n,), shuffled; consecutive slices are the minibatches."""

    @abstractmethod
    def val_dataloader(self) -> Iterator[slice]:
        """Yield the minibatches of the validation split in its own order, as slices of it; the last may be short."""


class Module(ABC):
    """A model: its parameters, its loss, its optimizer, and one compiled epoch of training steps.

    ``X``, ``y`` and all returned tensors are the framework's own, on its device; see ``to_device``.
    """

    @abstractmethod
    def to_device(self, array: NDArray[Any]) -> Any:
        """Copy an array to the device, where it stays."""

    @abstractmethod
    def room(self) -> int:
        """Return how many bytes of a device's memory the examples may take; ``sys.maxsize`` for no limit."""

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
        """Return the logits (num_outputs, n) and the loss of each example (n,)."""


class Classifier(Module):
    """A module whose outputs are classes: it adds prediction and accuracy."""

    def predict(self, split: Split) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Classify the examples of ``split``.

        Returns:
            The predicted class and the loss of each example, both (n,). The class is decided in NumPy, on exact
            logits: the first of equal ones, which frameworks do not promise. The losses are on a grid: sum them in
            any order.
        """
        at_once = max(self.room() // (9 * split.images[0].size), 1)  # a uint8 and a float64 a pixel
        predicted, losses = [], []
        for start in range(0, len(split.labels), at_once):
            images, labels = (array[start : start + at_once] for array in split)
            logits, some = self.validation_step(self.to_device(images), self.to_device(labels))
            predicted.append(np.asarray(logits).argmax(axis=0))
            losses.append(np.asarray(some))
        return np.concatenate(predicted), np.concatenate(losses)

    @staticmethod
    def accuracy(predicted: NDArray[np.intp], labels: NDArray[np.uint8]) -> float:
        """Return the share of examples whose predicted class (n,) is their label (n,)."""
        return int((predicted == labels).sum()) / len(labels)


class Trainer:
    """Fits a classifier for ``max_epochs``, with a validation after each; silently where another process tells."""

    def __init__(self, max_epochs: int, *, silent: bool = False) -> None:
        self.max_epochs = max_epochs
        self.silent = silent

    def fit(self, model: Classifier, data: DataModule) -> list[Epoch]:
        """Train, showing a progress bar with each epoch's losses and accuracy, or one line an epoch in a log.

        Raises:
            UserError: A parameter left the range in which the arithmetic is exact.
        """
        self.model, self.data = model, data
        self.streamed = data.train.images.nbytes > model.room()
        if self.streamed:
            size, room = data.train.images.nbytes / 2**20, model.room() / 2**20
            print(f"train: {size:.1f} MiB of images, {room:.1f} MiB of device: streamed from the host", flush=True)
        else:
            self.X, self.y = model.to_device(data.train.images), model.to_device(data.train.labels)
        history: list[Epoch] = []
        self.check_range(max(float(np.abs(np.asarray(p)).max()) for p in model.parameters()), "before the first epoch")
        width = shutil.get_terminal_size().columns  # a terminal that does not tell its own would get an empty line
        hidden = self.silent or None  # tqdm hides the bar itself in a log
        with tqdm(range(1, self.max_epochs + 1), desc="train", unit="epoch", ncols=width, disable=hidden) as epochs:
            for epoch in epochs:
                history.append(self.fit_epoch(epoch))
                row = {name: f"{value:.4f}" for name, value in history[-1]._asdict().items() if name != "epoch"}
                epochs.set_postfix(row)
                if epochs.disable and not self.silent:
                    print(f"train: epoch {epoch}/{self.max_epochs}", *(f"{k} {v}" for k, v in row.items()), flush=True)
        return history

    def fit_epoch(self, epoch: int) -> Epoch:
        """Train for one epoch, then validate."""
        order = self.data.train_dataloader()
        if self.streamed:
            loss, largest = self.fit_streamed(order)
        else:
            loss, largest = self.model.fit_epoch(self.X, self.y, self.model.to_device(order))
        self.check_range(float(largest), f"in epoch {epoch}")
        predicted, losses = self.model.predict(self.data.validation)
        accuracy = self.model.accuracy(predicted, self.data.validation.labels)
        return Epoch(epoch, float(loss) / len(self.data.train.labels), float(losses.sum()) / len(losses), accuracy)

    def fit_streamed(self, order: NDArray[np.int32]) -> tuple[float, float]:
        """Train for one epoch on examples that are in the host's memory, some minibatches after the others.

        While the device works on some, the next are gathered and copied; so two shares of the epoch have to fit. The
        sums are exact, whatever their shares.
        """
        minibatch = self.data.train.images[0].nbytes * self.data.batch_size
        share = max(self.model.room() // (2 * minibatch), 1) * self.data.batch_size
        shares: list[tuple[Any, Any]] = []
        for start in range(0, len(order), share):
            indices = order[start : start + share]
            X, y = (self.model.to_device(array[indices]) for array in self.data.train)
            if shares:
                float(shares[-1][0])  # waits for the device
            shares.append(self.model.fit_epoch(X, y, self.model.to_device(np.arange(len(indices), dtype=np.int32))))
        losses, largest = np.array([[float(loss), float(peak)] for loss, peak in shares]).T
        return float(losses.sum()), float(largest.max())  # NaN if one is

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
