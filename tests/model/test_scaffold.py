"""The trainer, with a classifier and a data set small enough to follow by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.core.command import UserError
from stages.model.scaffold import Classifier, DataModule, Epoch, Module, Split, Trainer

TWO = Split(np.zeros((2, 1, 1), np.uint8), np.array([0, 1], np.uint8))
FOUR = Split(np.zeros((4, 1, 1), np.uint8), np.array([0, 1, 1, 2], np.uint8))


class Data(DataModule):
    train, validation, batch_size = TWO, FOUR, 1

    def __init__(self) -> None:
        self.drawn = 0

    def shuffle(self) -> NDArray[np.int32]:
        self.drawn += 1
        return np.array([1, 0], np.int32)


class Scripted(Classifier):
    """Predicts class 1 for every example and reports the magnitudes that a test gives, epoch by epoch."""

    def __init__(self, *largest: float, start: float = 0.0) -> None:
        self.largest = list(largest)
        self.W, self.b = np.full((1, 3), start), np.zeros(3)

    def to_device(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def forward(self, X: Any) -> Any:
        raise AssertionError("training does not call it")

    def parameters(self) -> list[Any]:
        return [self.W, self.b]

    def load(self, W: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        self.W, self.b = W, b

    def fit_epoch(self, X: Any, y: Any, order: Any) -> tuple[Any, Any]:
        assert order.tolist() == [1, 0]
        return 3.0, self.largest.pop(0)

    def validation_step(self, X: Any, y: Any) -> tuple[Any, Any]:
        return np.array([[0.0, 2.0, 2.0]] * len(y)), np.full(len(y), 0.25)


def test_history_has_one_row_per_epoch_with_sums_divided_once() -> None:
    data = Data()
    history = Trainer(2).fit(Scripted(1.0, 2.0), data)

    assert history == [Epoch(1, 1.5, 0.25, 0.5), Epoch(2, 1.5, 0.25, 0.5)]
    assert data.drawn == 2


def test_a_log_gets_one_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(2).fit(Scripted(1.0, 1.0), Data())

    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" train_loss")[0] for line in lines] == ["train: epoch 1/2", "train: epoch 2/2"]
    assert lines[0].endswith("train_loss 1.5000 validation_loss 0.2500 validation_accuracy 0.5000")


@pytest.mark.parametrize("largest", [300_000.0, float("inf"), float("nan")])
def test_leaving_the_exact_range_stops_with_epoch_value_and_advice(largest: float) -> None:
    with pytest.raises(UserError) as caught:
        Trainer(5).fit(Scripted(1.0, largest), Data())

    message = str(caught.value)
    assert message.startswith("in epoch 2: ")
    assert f"found {largest:.1f}" in message
    assert message.endswith("lower train.lr or train.sigma in params.yaml")


def test_initial_weights_outside_the_exact_range_stop_before_the_first_epoch() -> None:
    with pytest.raises(UserError, match=r"^before the first epoch: .* found 1000000\.0: .* lower train\.lr"):
        Trainer(1).fit(Scripted(start=1e6), Data())


def test_the_first_of_equal_logits_is_the_prediction() -> None:
    predicted, losses = Scripted().predict(*FOUR)

    assert predicted.tolist() == [1, 1, 1, 1]
    assert losses.tolist() == [0.25] * 4


@pytest.mark.parametrize("abstract", [DataModule, Module, Classifier])
def test_abstract_classes_cannot_be_instantiated(abstract: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        abstract()
