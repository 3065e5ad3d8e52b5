"""One row of verify: check the assumptions and train in one way, in a process of its own."""

import argparse
import hashlib
import json
import os
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.core.command import UserError
from stages.core.files import npz_bytes
from stages.core.params import Train, load_params
from stages.model.dataset import FashionMNIST
from stages.model.frameworks import softmax_regression
from stages.model.scaffold import Trainer
from stages.runtime import devices
from stages.runtime.distributed import initialize
from tools.proof import oracle
from tools.proof.assumptions import compiled_program, failed_assumptions, folded_constants, operations

RESIZED = Path("data/resized")


class Row(NamedTuple):
    """One way to train: on cpu or gpu, with 1 thread or all, and so many devices in each of so many processes."""

    implementation: str
    device: str = "cpu"
    threads: str = "all"
    instruction_set: str = "best"
    devices: str = "1"
    processes: str = "1"


class Trained(NamedTuple):
    """What a row ends with: where it ran, the assumptions that failed, seconds of each epoch, W (d, q) and b (q,)."""

    place: str
    failed: list[str]
    seconds: list[float]
    W: Any
    b: Any


def work(row: Row, hyper: Train) -> dict[str, Any]:
    """Check the assumptions and train, in this process; return the model's hash and the times."""
    if row.threads == "1" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    data = FashionMNIST(RESIZED, hyper.batch_size, hyper.seed)
    trained = train_oracle(data, hyper) if row.implementation == "numpy" else train_framework(row, data, hyper)
    first, *others = trained.seconds
    return {
        "place": trained.place,
        "failed": trained.failed,
        "first": first,
        "steady": statistics.median(others) if others else None,
        "sha256": digest(trained.W, trained.b),
        "md5": hashlib.md5(npz_bytes(W=trained.W, b=trained.b), usedforsecurity=False).hexdigest(),
    }


def train_oracle(data: FashionMNIST, hyper: Train) -> Trained:
    """Train in NumPy."""
    failed = failed_assumptions(operations("numpy"))
    start = time.perf_counter()
    W, b, _ = oracle.train(*data.train, **asdict(hyper))
    return Trained("CPU", failed, [(time.perf_counter() - start) / hyper.epochs] * hyper.epochs, W, b)


def train_framework(row: Row, data: FashionMNIST, hyper: Train) -> Trained:
    """Train in TensorFlow or JAX, on the row's devices."""
    framework = row.implementation.partition("-")[0]
    place = devices.start(framework, row.device, int(row.devices)).removeprefix(f"{framework} on ")
    model: Any = softmax_regression(
        framework, data.train.images[0].size, hyper.lr, hyper.sigma, batch_size=hyper.batch_size, seed=hyper.seed
    )
    failed = failed_assumptions(operations(row.implementation))
    if row.implementation == "tensorflow-graph":
        import tensorflow as tf

        model.fit_epoch = tf.function(model.fit_epoch.python_function)
    trainer, seconds = Trainer(hyper.epochs), []
    trainer.prepare(model, data)
    for epoch in range(1, hyper.epochs + 1):
        start = time.perf_counter()
        trainer.fit_epoch(epoch)
        seconds.append(time.perf_counter() - start)
    if row.implementation != "tensorflow-graph":
        program = compiled_program(model, (trainer.X, trainer.y, model.to_device(data.shuffle())))
        failed += [f"A3: constant {scale}" for scale in folded_constants(program)]
    if row.device == "gpu":
        place += f", peak {peak_memory(row.implementation) / 2**20:.0f} MiB"
    W, b = (np.asarray(parameter) for parameter in model.parameters())
    return Trained(place, failed, seconds, W, b)


def peak_memory(implementation: str) -> int:
    """Return the most bytes of GPU memory that the framework has had in use in this process."""
    if implementation == "jax":
        import jax

        return int(jax.devices("gpu")[0].memory_stats()["peak_bytes_in_use"])
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def digest(W: Any, b: Any) -> str:
    """Return the SHA-256 of the parameters' bytes."""
    return hashlib.sha256(W.tobytes() + b.tobytes()).hexdigest()


def main() -> None:
    """Print the row's result, or what keeps this machine from it, as JSON."""
    parser = argparse.ArgumentParser(prog="training", description="Train in one way and print the result as JSON.")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("row", nargs=len(Row._fields))
    arguments = parser.parse_args()
    try:
        hyper = replace(load_params().train, epochs=arguments.epochs)
        with initialize(arguments.row[0].split("-")[0]):
            print(json.dumps(work(Row(*arguments.row), hyper)))
    except UserError as error:
        print(json.dumps({"cannot": str(error)}))


if __name__ == "__main__":
    main()
