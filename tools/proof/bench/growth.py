"""An epoch against the number of images and of pixels."""

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from tools.proof.bench import processes
from tools.proof.bench.epochs import FRAMEWORKS, compiled, resized_task, timed
from tools.proof.bench.figures import Figures, Target, record

EPOCH, PER_PIXEL = "epoch s", "time per image-pixel / at n"
LINEAR = 1.25
"""The time per image-pixel may grow by this factor at four times the images and still be called linear."""


def measure(runs: int) -> Any:
    """Return the figures of one process, which starts both frameworks."""
    return processes.spawn_work("growth", runs)[1]


def work(runs: int) -> Figures:
    """Time the epochs of both frameworks, in turn, at each size; pixels are repeated, as times depend on none."""
    task, figures = resized_task("cpu"), Figures()
    n = len(task.labels)
    sizes = [(n, 32), (4 * n, 32), (n, 64), (n // 4, 32), (n, 28)]
    shapes = [(count, side, side) for count, side in sizes]
    repeated = [(np.resize(task.images, shape), np.resize(task.labels, shape[0])) for shape in shapes]
    epochs = [compiled(task._replace(images=images, labels=labels)) for images, labels in repeated]
    for _ in range(runs):
        for name in FRAMEWORKS:
            seconds = [timed(epoch[name], 1)[0] for epoch in epochs]
            per_pixel = [s / images.size for s, (images, _) in zip(seconds, repeated, strict=True)]
            for i, (count, side) in enumerate(sizes):
                columns = {EPOCH: seconds[i], PER_PIXEL: per_pixel[i] / per_pixel[0]}
                record(figures, f"{name}, {count} at {side}x{side}", columns)
    return figures


def targets(figures: Figures) -> Iterator[Target]:
    """Yield the promise of each framework, at the most images."""
    for name in FRAMEWORKS:
        _, most, *_ = [columns for row, columns in figures.items() if row.startswith(name)]
        yield Target(f"time per image-pixel at 4 n / at n, {name}", statistics.median(most[PER_PIXEL]), LINEAR)
