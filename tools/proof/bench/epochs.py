"""An epoch of this project's training, in either framework, and how long it takes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The main process imports this too: frameworks are imported where a process of its own needs them.
from stages.core.files import read_npz
from stages.core.params import Train, load_params

RAW, RESIZED = Path("data/raw"), Path("data/resized")
TENSORFLOW, JAX = "this project, TensorFlow", "this project, JAX"
FRAMEWORKS = {TENSORFLOW: "tensorflow", JAX: "jax"}

Epoch = Callable[[], object]
"""Trains for an epoch and returns when that is done."""


class Task(NamedTuple):
    """What is trained on: images uint8 (n, height, width), labels uint8 (n,), on ``cpu`` or ``gpu``."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    hyper: Train
    device: str


def resized_task(device: str) -> Task:
    """Read the training set and the hyperparameters; raise ``UserError`` for what cannot be used."""
    path = RESIZED / "train.npz"
    images, labels = read_npz(path, images=("uint8", (None, None, None)), labels=("uint8", (None,)))
    return Task(images, labels, load_params().train, device)


def timed(epoch: Epoch, epochs: int) -> list[float]:
    """Return the seconds of each of ``epochs`` calls."""
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - start)
    return seconds


def prepare(framework: str, task: Task) -> tuple[Any, Epoch]:
    """Return this project's model with the data on its device, and an epoch of its training."""
    from stages.model.frameworks import softmax_regression
    from stages.runtime import devices

    hyper, n = task.hyper, len(task.labels)
    devices.start(framework, task.device)
    model: Any = softmax_regression(
        framework, task.images[0].size, hyper.lr, hyper.sigma, batch_size=hyper.batch_size, seed=hyper.seed
    )
    X, y = model.to_device(task.images), model.to_device(task.labels)
    rng = np.random.default_rng([hyper.seed, 1])  # the stream of the pipeline's order

    def epoch() -> None:
        order = model.to_device(rng.permutation(n).astype(np.int32))
        float(model.fit_epoch(X, y, order)[0])  # waits for the device

    return model, epoch


def compiled(task: Task) -> dict[str, Epoch]:
    """Return an epoch of this project in each framework, compiled."""
    epochs = {row: prepare(framework, task)[1] for row, framework in FRAMEWORKS.items()}
    for epoch in epochs.values():
        epoch()
    return epochs
