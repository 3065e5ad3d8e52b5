"""Fashion-MNIST as the model sees it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.command import UserError
from stages.model.dataset import FashionMNIST, read_split

IMAGES = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2)
LABELS = np.array([0, 9, 4, 4, 1], np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    np.savez(tmp_path / "train.npz", images=IMAGES, labels=LABELS)
    np.savez(tmp_path / "validation.npz", images=IMAGES[::-1], labels=LABELS[::-1])
    return tmp_path


def test_splits_are_what_the_files_hold(root: Path) -> None:
    data = FashionMNIST(root, batch_size=2)

    assert np.array_equal(data.train.images, IMAGES)
    assert np.array_equal(data.train.labels, LABELS)
    assert np.array_equal(data.validation.images, IMAGES[::-1])
    assert np.array_equal(data.validation.labels, LABELS[::-1])


def test_validation_does_not_read_the_training_split(root: Path) -> None:
    (root / "train.npz").unlink()

    assert len(FashionMNIST(root, batch_size=2).validation.labels) == 5


def test_validation_batches_are_in_order_and_the_last_is_short(root: Path) -> None:
    data = FashionMNIST(root, batch_size=2)

    batches = list(data.val_dataloader())
    assert [y.tolist() for _, y in batches] == [[1, 4], [4, 9], [0]]
    assert np.array_equal(np.concatenate([X for X, _ in batches]), data.validation.images)


def test_training_batches_are_the_slices_of_the_shuffled_examples(root: Path) -> None:
    data, order = FashionMNIST(root, batch_size=2), FashionMNIST(root, batch_size=2).shuffle()

    batches = list(data.train_dataloader())
    assert [len(y) for _, y in batches] == [2, 2, 1]
    assert np.array_equal(np.concatenate([X for X, _ in batches]), IMAGES[order])
    assert np.array_equal(np.concatenate([y for _, y in batches]), LABELS[order])


def test_every_epoch_is_another_permutation_of_one_stream(root: Path) -> None:
    data, again = (FashionMNIST(root, batch_size=2, seed=3) for _ in range(2))
    rng = np.random.default_rng([3, 1])
    orders = [data.shuffle() for _ in range(4)]

    assert all(np.array_equal(order, rng.permutation(5)) for order in orders)
    assert all(np.array_equal(order, again.shuffle()) for order in orders)
    assert len({order.tobytes() for order in orders}) > 1
    assert orders[0].dtype == np.int32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES, "labels": LABELS[:4]}, "expected one label per image, found 5 images and 4 labels"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "expected one label per image, found 0 images and 0 labels"),
        ({"images": IMAGES, "labels": LABELS + np.uint8(1)}, "expected labels from 0 to 9, found 10"),
        ({"images": IMAGES.astype(float), "labels": LABELS}, "expected images uint8 (n, n, n), found float64"),
        ({"images": IMAGES}, "expected the arrays ['images', 'labels'], found ['images']"),
    ],
)
def test_a_split_that_breaks_the_contract_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "train.npz", **arrays)

    with pytest.raises(UserError) as caught:
        read_split(tmp_path / "train.npz")
    assert str(caught.value).startswith(f"{tmp_path / 'train.npz'}: ")
    assert message in str(caught.value)
