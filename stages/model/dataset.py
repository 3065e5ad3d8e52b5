"""Fashion-MNIST as the model sees it: two splits and their minibatches. NumPy only."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import read_npz
from stages.model.scaffold import DataModule, Split


def read_split(path: Path) -> Split:
    """Read ``train.npz`` or ``validation.npz``.

    Raises:
        UserError: The file is missing or damaged, images and labels differ in number, or a label is no class.
    """
    images, labels = read_npz(path, images=("uint8", (None, None, None)), labels=("uint8", (None,)))
    if not len(images) == len(labels) > 0:
        raise UserError(f"{path}: expected one label an image, found {len(images)} images and {len(labels)} labels")
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

    def train_dataloader(self) -> NDArray[np.int32]:
        """Shuffle examples, not batches, so that minibatches differ from epoch to epoch (in the book they do not)."""
        return self.rng.permutation(len(self.train.labels)).astype(np.int32)

    def val_dataloader(self) -> Iterator[slice]:
        """Yield slices of the validation split, which is in the order of the published files."""
        for start in range(0, len(self.validation.labels), self.batch_size):
            yield slice(start, start + self.batch_size)
