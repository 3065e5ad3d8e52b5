"""The lesson: its page prints what it says, and the last cells of the book's run on this project's classes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Repository

from stages.core.fashion_mnist import CLASS_NAMES
from stages.model.dataset import FashionMNIST
from stages.model.frameworks import softmax_regression
from stages.model.scaffold import Trainer
from stages.runtime import devices

PAGE = (Path(__file__).resolve().parents[2] / "docs/lesson.md").read_text()
BEFORE_DATA = PAGE.partition("\n## Train\n")[0]
OTHER = {"tensorflow": "# JAX\n", "jax": "# TensorFlow\n"}
RNG = np.random.default_rng(6)
LABELS = RNG.integers(0, 10, 600, dtype=np.uint8)
IMAGES = RNG.integers(0, 150, (600, 32, 32), dtype=np.uint8)
IMAGES[:, ::8, ::8] += 10 * LABELS[:, np.newaxis, np.newaxis]


def check_outputs(page: str, framework: str, printed: pytest.CaptureFixture[str]) -> int:
    """Run the blocks of a page but those of the other framework; return how many outputs were those of the page."""
    names: dict[str, Any] = {}
    outputs = 0
    for kind, block in re.findall(r"^```(python|text)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if kind == "text":
            assert printed.readouterr().out == block
            outputs += 1
        elif not block.startswith(OTHER[framework]):
            exec(block, names)  # noqa: S102 - the page's own lines
    return outputs


@pytest.mark.parametrize("framework", ["tensorflow", "jax"])
def test_the_page_prints_what_it_says_as_far_as_it_needs_no_data(
    framework: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_outputs(BEFORE_DATA, framework, capsys) == BEFORE_DATA.count("```text")


@pytest.mark.slow  # the real data
def test_the_whole_page_prints_what_it_says(
    fresh: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fresh.root)  # where TensorFlow, through DVC, has given the same model
    assert check_outputs(PAGE, "jax", capsys) == PAGE.count("```text")


@pytest.mark.parametrize("framework", ["tensorflow", "jax"])
def test_the_last_cells_of_the_lesson_run_as_in_the_book(tmp_path: Path, framework: str) -> None:
    for split in ("train", "validation"):
        np.savez(tmp_path / f"{split}.npz", images=IMAGES, labels=LABELS)
    devices.start(framework, "cpu")

    data = FashionMNIST(tmp_path, batch_size=256)
    model = softmax_regression(framework, num_inputs=1024, lr=0.1, sigma=0.01)
    history = Trainer(max_epochs=10).fit(model, data)
    X, y = next(iter(data.val_dataloader()))
    preds = model(X).argmax(axis=1)
    wrong = preds != y
    names = zip(data.text_labels(y[wrong]), data.text_labels(preds[wrong]), strict=True)
    labels = [f"{true}\n{predicted}" for true, predicted in names]
    figure = data.visualize([X[wrong], y[wrong]], nrows=2, labels=labels)

    assert history[-1].train_loss < history[0].train_loss
    assert preds.shape == (256,)
    predicted, _ = model.predict(*(model.to_device(array) for array in data.validation))
    assert np.array_equal(preds, predicted[:256])
    assert 16 <= wrong.sum() < 256
    assert [axes.get_title() for axes in figure.axes] == labels[:16]
    assert set("\n".join(labels).splitlines()) <= set(CLASS_NAMES)
    assert np.array_equal(figure.axes[1].get_images()[0].get_array(), X[wrong][1])
    assert data.visualize((X, y)).axes[0].get_title() == CLASS_NAMES[y[0]]


@pytest.mark.parametrize("framework", ["tensorflow", "jax"])
def test_a_model_has_the_book_s_shapes(framework: str) -> None:
    devices.start(framework, "cpu")
    model = softmax_regression(framework, num_inputs=1024, lr=0.1, sigma=0.01)

    assert model.W.shape == (1024, 10)
    assert model.b.shape == (10,)
    y_hat = model(IMAGES[:3])
    assert y_hat.shape == (3, 10)
    assert np.abs(y_hat.sum(axis=1) - 1).max() <= 10 * 2.0**-25  # each probability is rounded by half a step of 2^-24
