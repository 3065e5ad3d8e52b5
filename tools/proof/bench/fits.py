"""Ten epochs: this project beside its NumPy oracle, two loops of TensorFlow, and Keras."""

import functools
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.runtime import devices
from stages.runtime.driver import driver_gpus
from tools.proof import oracle
from tools.proof.bench import processes
from tools.proof.bench.epochs import JAX, TENSORFLOW, Task, prepare, resized_task, timed
from tools.proof.bench.figures import Figures, Target, record

FIT, COMPILATION, EPOCH, PEAK = "fit s", "compilation s", "epoch s", "peak MB"
RATIO = "fit / TensorFlow's"


class Fit(NamedTuple):
    """The seconds of each epoch, and the parameters W (d, q) and b (q,) that they ended with."""

    seconds: list[float]
    W: Any
    b: Any


def project(framework: str, task: Task) -> Fit:
    """Train this project's model."""
    model, epoch = prepare(framework, task)
    return Fit(timed(epoch, task.hyper.epochs), *model.parameters())


def numpy_oracle(task: Task) -> Fit:
    """Train the NumPy oracle, which has no epochs to time one by one."""
    start = time.perf_counter()
    W, b, _ = oracle.train(task.images, task.labels, **asdict(task.hyper))
    return Fit([(time.perf_counter() - start) / task.hyper.epochs] * task.hyper.epochs, W, b)


def float32_pixels(images: NDArray[np.uint8]) -> NDArray[Any]:
    """Return X float32 (n, height * width), from 0 to just below 1."""
    return images.reshape(len(images), -1).astype(np.float32) / 256


def minibatch_loop(compiled: bool, task: Task) -> Fit:
    """Train as Dive into Deep Learning, section 4.4, does: a Python loop over minibatches, float32, a gradient tape.

    Its loader batches, resizes every image on every pass, and shuffles the batches. ``compiled`` makes the step a
    ``tf.function`` and takes the minibatches with ``tf.gather`` instead. Neither validates after an epoch.
    """
    devices.start("tensorflow", task.device)
    import tensorflow as tf

    hyper, n, q = task.hyper, len(task.labels), len(CLASS_NAMES)
    X, y = tf.constant(float32_pixels(task.images)), tf.constant(task.labels.astype(np.int32))
    W = tf.Variable(tf.random.normal((X.shape[1], q), stddev=hyper.sigma))
    b = tf.Variable(tf.zeros(q))
    rng = np.random.default_rng(hyper.seed)

    def training_step(X: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            X_exp = tf.exp(X @ W + b)
            y_hat = X_exp / tf.reduce_sum(X_exp, 1, keepdims=True)
            label_probability = tf.boolean_mask(y_hat, tf.one_hot(y, q, True, False, dtype=tf.bool))
            loss = -tf.reduce_mean(tf.math.log(label_probability))
        for parameter, gradient in zip((W, b), tape.gradient(loss, (W, b)), strict=True):
            parameter.assign_sub(hyper.lr * gradient)

    def gathered() -> Iterator[tuple[Any, Any]]:
        order = rng.permutation(n)
        for start in range(0, n, hyper.batch_size):
            indices = order[start : start + hyper.batch_size]
            yield tf.gather(X, indices), tf.gather(y, indices)

    def loaded() -> Iterator[tuple[Any, Any]]:
        height, width = task.images.shape[1:]
        examples = tf.data.Dataset.from_tensor_slices((task.images[..., None].astype(np.float32) / 255, y))
        resized = examples.batch(hyper.batch_size).map(lambda X, y: (tf.image.resize_with_pad(X, height, width), y))
        for images, labels in resized.shuffle(n):
            yield tf.reshape(images, (len(images), -1)), labels

    step, batches = (tf.function(training_step), gathered) if compiled else (training_step, loaded)

    def epoch() -> None:
        for batch in batches():
            step(*batch)
        W.numpy()  # waits for the device

    return Fit(timed(epoch, hyper.epochs), W, b)


def keras_fit(task: Task) -> Fit:
    """Train with Keras: Flatten, Dense, SGD, cross-entropy from logits, and its own ``fit``."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    devices.start("tensorflow", task.device)
    keras, hyper = importlib.import_module("keras"), task.hyper
    dense = keras.layers.Dense(
        len(CLASS_NAMES), kernel_initializer=keras.initializers.RandomNormal(stddev=hyper.sigma, seed=hyper.seed)
    )
    model = keras.Sequential([keras.Input(task.images.shape[1:]), keras.layers.Flatten(), dense])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(hyper.lr), loss)
    X = float32_pixels(task.images).reshape(task.images.shape)
    marks = [time.perf_counter()]
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: marks.append(time.perf_counter()))
    model.fit(X, task.labels, hyper.batch_size, hyper.epochs, verbose=0, callbacks=[clock])
    return Fit(np.diff(marks).tolist(), *dense.get_weights())


ORACLE, EAGER, KERAS = "NumPy oracle", "eager loop (book)", "Keras fit"
BASELINES: dict[str, Callable[[Task], Fit]] = {
    TENSORFLOW: functools.partial(project, "tensorflow"),
    JAX: functools.partial(project, "jax"),
    ORACLE: numpy_oracle,
    EAGER: functools.partial(minibatch_loop, False),
    "tf.function per step": functools.partial(minibatch_loop, True),
    KERAS: keras_fit,
}


def rows() -> list[tuple[str, str]]:
    """Return the rows that this machine can do, each a baseline or this project and its device."""
    on_gpu = [(name, "gpu") for name in BASELINES if name != ORACLE] if driver_gpus() else []
    return [(name, "cpu") for name in BASELINES] + on_gpu


def work(name: str, device: str) -> dict[str, float]:
    """Train in this process; return the times and the memory."""
    seconds = BASELINES[name](resized_task(device)).seconds
    steady = statistics.median(seconds[1:] or seconds)
    peak = processes.peak_megabytes(Path("/proc/self/status").read_text())
    return {FIT: sum(seconds), COMPILATION: seconds[0] - steady, EPOCH: steady, PEAK: peak}


def measure(runs: int) -> Figures:
    """Time from data and weights on the device to trained parameters; compilation is the first epoch's surplus."""
    remaining, figures = rows(), Figures()
    for _ in range(runs):
        for name, device in list(remaining):
            row = f"{name}, GPU" if device == "gpu" else name
            try:
                _, found = processes.spawn_work("fit", name, device)
            except UserError as error:
                if device == "cpu":
                    raise
                remaining.remove((name, device))
                print(f"{row}: not run: {error}")
                continue
            record(figures, row, found)
            record(figures, row, {RATIO: found[FIT] / figures[TENSORFLOW][FIT][-1]})
    return figures


def targets(figures: Figures) -> Iterator[Target]:
    """Yield the promises about a fit."""
    for row, limit in ((EAGER, 15.0), (KERAS, 5.0), (JAX, 1.0)):
        ratio = statistics.median(figures[row][RATIO])
        yield Target(f"fit of {row} / {TENSORFLOW}", ratio, limit, at_least=True)
    for row in (f"{TENSORFLOW}, GPU", f"{JAX}, GPU"):
        if row in figures:
            medians = {column: statistics.median(values) for column, values in figures[row].items()}
            yield Target(f"epoch of {row}, s", medians[EPOCH], 0.030)
            yield Target(f"fit less compilation of {row}, s", medians[FIT] - medians[COMPILATION], 0.5)
