"""An epoch against the least that the memory, the cache and the matrix products of this machine would need."""

import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.fashion_mnist import CLASS_NAMES
from tools.proof.bench import processes
from tools.proof.bench.epochs import JAX, TENSORFLOW, Epoch, compiled, resized_task, timed
from tools.proof.bench.figures import Figures, Target, record

MEMORY_BYTES = 2**29
"""Copied to measure the memory: more than any cache holds."""
STEPS, SQUARE = 32, 1024
OVER_FLOOR = "epoch / floor"


def needs(n: int, d: int, q: int) -> tuple[int, int, int]:
    """Count what an epoch over ``n`` images of ``d`` pixels and ``q`` classes cannot do without.

    Returns:
        Bytes from memory, n (d + 5): each image, its label (1) and its index in the order (4), once. Bytes to and from
        the cache, 24 n d: the minibatches as float64, written once and read by both products. Operations, 4 n d q:
        a multiplication and an addition for each term of the logits and of the gradient of W.
    """
    return n * (d + 5), 24 * n * d, 4 * n * d * q


def copy_rate(size: int, repeats: int) -> float:
    """Copy ``size`` bytes, divided among the cores, ``repeats`` times; return bytes read and written per second."""
    cores = os.cpu_count() or 1
    pairs = [(np.empty(size // cores, np.uint8), np.ones(size // cores, np.uint8)) for _ in range(cores)]

    def copy(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
        for _ in range(repeats):
            np.copyto(*pair)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(copy, pairs))  # the first touch of a page is the kernel's work
        (seconds,) = timed(lambda: list(pool.map(copy, pairs)), 1)
    return 2 * sum(target.size for target, _ in pairs) * repeats / seconds


def products(steps: int, m: int, d: int, q: int) -> dict[str, Epoch]:
    """Return for each library both products of some steps in float64, in the form in which it is fastest.

    They are W X' and D X, with X (m, d), and W (q, d) and D (q, m) of each step, or their transposes. All steps are one
    call, as an epoch is, which returns the last step's: more would be new memory to touch.
    """
    import jax
    import tensorflow as tf

    rng = np.random.default_rng(0)
    X, *each = factors = [rng.standard_normal(shape) for shape in ((m, d), (steps, q, d), (steps, q, m))]

    def folded(X: Any, *each: Any) -> Any:
        none = np.zeros((m, q)), np.zeros((q, d))
        return tf.foldl(lambda _, WD: (tf.matmul(X, WD[0], transpose_b=True), WD[1] @ X), each, none)

    def scanned(X: Any, *each: Any) -> Any:
        none = np.zeros((q, m)), np.zeros((q, d))
        return jax.lax.scan(lambda _, WD: ((WD[0] @ X.T, WD[1] @ X), None), none, each)[0]

    tensors, arrays = [tf.constant(A) for A in factors], [jax.device_put(A) for A in factors]
    traced, jitted = tf.function(folded, jit_compile=True, autograph=False), jax.jit(scanned)
    return {
        "JAX": lambda: [np.asarray(array) for array in jitted(*arrays)],
        "TensorFlow": lambda: [tensor.numpy() for tensor in traced(*tensors)],
        "NumPy": lambda: [(X @ W.T, X.T @ D.T) for W, D in zip(*each, strict=True)][-1],  # last: its threads linger
    }


def measure(runs: int) -> Any:
    """Return the figures of one process, which starts both frameworks."""
    return processes.spawn_work("floor", runs)[1]


def work(runs: int) -> Figures:
    """Compare an epoch with its floor: the slowest of memory, cache and matrix products, were they to overlap.

    That is the roofline of Williams, Waterman and Patterson (CACM 52(4), 2009, pages 65-76), with the rate of the best
    library at the shapes of the task; a large square product shows what the processor could do.
    """
    task = resized_task("cpu")
    d, q, m = task.images[0].size, len(CLASS_NAMES), task.hyper.batch_size
    from_memory, in_cache, operations = needs(len(task.labels), d, q)
    epochs, at_task, square = compiled(task), products(STEPS, m, d, q), products(1, SQUARE, SQUARE, SQUARE)["JAX"]
    figures = Figures()

    def least(row: str, need: int, rate: float) -> float:
        record(figures, row, {"needs 1e9": need / 1e9, "rate 1e9/s": rate / 1e9, "epoch ms": 1e3 * need / rate})
        return need / rate

    for _ in range(runs):
        memory = least("memory: n (d + 5) bytes", from_memory, copy_rate(MEMORY_BYTES, 2))
        cache = least("minibatches in cache: 24 n d bytes", in_cache, copy_rate(8 * m * d, 200))
        multiply = min(
            least(f"{name} ({q},{d})x({d},{m}): 4 n d q", operations, STEPS * 4 * m * d * q / min(timed(both, 4)[1:]))
            for name, both in at_task.items()
        )
        least(f"JAX, {SQUARE} square: 4 n d q", operations, 4 * SQUARE**3 / min(timed(square, 4)[1:]))
        floor = max(memory, cache, multiply)
        record(figures, "floor", {"epoch ms": 1e3 * floor})
        for name, epoch in epochs.items():
            steady = statistics.median(timed(epoch, 3))
            record(figures, name, {"epoch ms": 1e3 * steady, OVER_FLOOR: steady / floor})
    return figures


def targets(figures: Figures) -> Iterator[Target]:
    """Yield the promise of each framework."""
    for row in (TENSORFLOW, JAX):
        yield Target(f"{OVER_FLOOR} of {row}", statistics.median(figures[row][OVER_FLOOR]), 3.0)
