"""The evaluate stage, in process, on a data set and a model made here."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import npz_bytes
from stages.evaluate import evaluate, read_model
from stages.model.exact import initial_weights

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (90, 4, 4), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 90, dtype=np.uint8)
W, B = initial_weights(16, 10, 0.5, 0), np.arange(10) / 64
PREDICTED = (IMAGES.reshape(90, -1) / 256 @ W + B).argmax(axis=1)
OUTPUTS = ("metrics/evaluate.json", "plots/predictions.csv", "plots/class_accuracy.csv", "data/errors.npz")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = (Path(__file__).parent.parent / "params.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    Path("data/resized").mkdir(parents=True)
    np.savez("data/resized/validation.npz", images=IMAGES, labels=LABELS)
    Path("data/model.npz").write_bytes(npz_bytes(W=W, b=B))
    Path("params.yaml").write_text(text.replace("framework: tensorflow", "framework: jax"))
    return tmp_path


def set_batch(size: int, index: int) -> None:
    text = Path("params.yaml").read_text()
    head, tail = text.split("evaluate:\n")
    tail = tail.replace("batch_size: 256", f"batch_size: {size}").replace("batch_index: 0", f"batch_index: {index}")
    Path("params.yaml").write_text(f"{head}evaluate:\n{tail}")


def run(prefix: str = "") -> dict[str, bytes]:
    outputs = [Path(prefix + path) for path in OUTPUTS]
    evaluate(Path("data/resized"), Path("data/model.npz"), *outputs)
    return {path: output.read_bytes() for path, output in zip(OUTPUTS, outputs, strict=True)}


def test_metrics_count_the_batch_and_the_whole_set(folder: Path) -> None:
    set_batch(size=32, index=2)  # examples 64 to 89, a short batch
    metrics = json.loads(run()["metrics/evaluate.json"])

    right = PREDICTED == LABELS
    assert metrics["validation"]["examples"] == 90
    assert metrics["validation"]["correct"] == right.sum()
    assert metrics["batch"]["examples"] == 26
    assert metrics["batch"]["correct"] == right[64:].sum()
    for scalars in metrics.values():
        assert scalars["accuracy"] == round(scalars["correct"] / scalars["examples"], 6)
        assert scalars["accuracy_low"] < scalars["accuracy"] < scalars["accuracy_high"]
        assert {type(value) for value in scalars.values()} <= {int, float}


def test_frameworks_write_the_same_bytes(folder: Path) -> None:
    first = run("jax/")
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("framework: jax", "framework: tensorflow"))

    assert run("tensorflow/") == first


def test_predictions_have_one_row_per_example_in_order(folder: Path) -> None:
    rows = list(csv.DictReader(run()["plots/predictions.csv"].decode().splitlines()))

    assert [row["actual"] for row in rows] == [CLASS_NAMES[label] for label in LABELS]
    assert [row["predicted"] for row in rows] == [CLASS_NAMES[label] for label in PREDICTED]


def test_class_accuracy_is_in_label_order_and_adds_up(folder: Path) -> None:
    rows = list(csv.DictReader(run()["plots/class_accuracy.csv"].decode().splitlines()))

    assert [row["class"] for row in rows] == list(CLASS_NAMES)
    assert sum(int(row["examples"]) for row in rows) == 90
    assert sum(int(row["correct"]) for row in rows) == (PREDICTED == LABELS).sum()
    assert all(float(row["accuracy"]) == round(int(row["correct"]) / int(row["examples"]), 6) for row in rows)


def test_errors_are_the_batch_s_misclassified_examples_in_order(folder: Path) -> None:
    set_batch(size=32, index=1)
    metrics = json.loads(run()["metrics/evaluate.json"])

    assert metrics["batch"]["examples"] == 32
    wrong = 32 + np.flatnonzero(PREDICTED[32:64] != LABELS[32:64])
    with np.load("data/errors.npz", allow_pickle=False) as errors:
        assert np.array_equal(errors["images"], IMAGES[wrong])
        assert np.array_equal(errors["actual"], LABELS[wrong])
        assert np.array_equal(errors["predicted"], PREDICTED[wrong])
        assert {errors[name].dtype.name for name in errors.files} == {"uint8"}


def test_a_batch_without_errors_gives_empty_arrays(folder: Path) -> None:
    np.savez("data/resized/validation.npz", images=IMAGES, labels=PREDICTED.astype(np.uint8))
    metrics = json.loads(run()["metrics/evaluate.json"])

    assert metrics["batch"]["accuracy"] == metrics["batch"]["accuracy_high"] == 1.0
    with np.load("data/errors.npz", allow_pickle=False) as errors:
        assert errors["images"].shape == (0, 4, 4)


def test_a_batch_beyond_the_data_is_refused(folder: Path) -> None:
    set_batch(size=30, index=3)

    with pytest.raises(UserError, match=r"^evaluate\.batch_index: expected one of the 3 batches of 30 .*, got 3"):
        run()
    assert not Path("metrics").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"W": W, "b": B, "c": B}, "expected the arrays ['W', 'b'], found ['W', 'b', 'c']"),
        ({"W": W.T, "b": B}, "expected W float64 (16, 10), found float64 (10, 16)"),
        ({"W": W.astype(np.float32), "b": B}, "expected W float64 (16, 10), found float32 (16, 10)"),
        ({"W": W, "b": B * np.nan}, "expected b in multiples of 2^-26"),
        ({"W": W, "b": B + 2.0**-27}, "expected b in multiples of 2^-26"),
        ({"W": W + 2.0**16, "b": B}, "expected W in multiples of 2^-26 of magnitude up to 30954.3"),
    ],
)
def test_a_damaged_model_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, **arrays)

    with pytest.raises(UserError) as caught:
        read_model(path, 16)
    assert str(caught.value).startswith(f"{path}: {message}")
