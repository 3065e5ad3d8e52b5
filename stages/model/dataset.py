"""Fashion-MNIST as the model sees it: two splits and their minibatches. NumPy only."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import read_npz
from stages.model.scaffold import DataModule, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_split(path: Path) -> Split:
    """Read ``train.npz`` or ``validation.npz``.

    Raises:
        UserError: The file is missing or damaged, images and labels differ in number, or a label is not a class.
    """
    images, labels = read_npz(path, images=("uint8", (None, None, None)), labels=("uint8", (None,)))
    if not len(images) == len(labels) > 0:
        raise UserError(f"{path}: expected one label per image, found {len(images)} images and {len(labels)} labels")
    if labels.max() >= len(CLASS_NAMES):
        raise UserError(f"{path}: expected labels from 0 to {len(CLASS_NAMES) - 1}, found {labels.max()}")
    return Split(images, labels)


class FashionMNIST(DataModule):
    """The resized data set in ``root``. As in the book, the test split serves as the validation split."""

    def __init__(self, root: Path, batch_size: int, seed: int = 0) -> None:
        self.root = root
        self.batch_size = batch_size
        # One stream orders the examples of all epochs; the initial weights have another, [seed, 0].
        self.rng = np.random.default_rng([seed, 1])

    @cached_property
    def train(self) -> Split:  # type: ignore[override]  # read when first asked for: evaluate never does
        """The training split."""
        return read_split(self.root / "train.npz")

    @cached_property
    def validation(self) -> Split:  # type: ignore[override]
        """The validation split."""
        return read_split(self.root / "validation.npz")

    def shuffle(self) -> NDArray[np.int32]:
        """Draw the order of one epoch (n,). Examples are shuffled, not batches (as in the book in TensorFlow)."""
        return self.rng.permutation(len(self.train.labels)).astype(np.int32)

    @staticmethod
    def text_labels(labels: Iterable[int]) -> list[str]:
        """Return the names of classes."""
        return [CLASS_NAMES[label] for label in labels]

    @staticmethod
    def visualize(
        batch: Sequence[NDArray[np.uint8]], nrows: int = 1, ncols: int = 8, labels: Sequence[str] = ()
    ) -> "Figure":
        """Draw the first images of a batch ``(X, y)`` in a grid, each under its label: by default its class's name."""
        from matplotlib.figure import Figure  # here, as training draws nothing

        figure = Figure(figsize=(1.5 * ncols, 1.8 * nrows), layout="constrained")
        X, y = batch
        grid = figure.subplots(nrows, ncols, squeeze=False).flat
        for axes, image, label in zip(grid, X, labels or FashionMNIST.text_labels(y), strict=False):
            axes.imshow(image, cmap="gray")
            axes.set_title(label, size=9)
        for axes in figure.axes:
            axes.set_axis_off()
        return figure
