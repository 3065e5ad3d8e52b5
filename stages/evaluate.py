r"""Score the validation batch and the whole validation set.

    python -m stages.evaluate data/resized data/model.npz \
        metrics/evaluate.json plots/predictions.csv plots/class_accuracy.csv data/errors.npz

With the committed parameters 214 of the first 256 examples are correct (0.8359), and 8217 of all 10,000.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.command import UserError, run
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.files import csv_bytes, json_bytes, npz_bytes, publish, read_npz
from stages.core.params import Evaluate, load_params
from stages.model.dataset import FashionMNIST
from stages.model.exact import K_PARAMETERS, parameter_limit
from stages.model.frameworks import softmax_regression
from stages.model.metrics import score
from stages.runtime import devices


def read_model(path: Path, num_inputs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read W (num_inputs, num_outputs) and b (num_outputs,), float64.

    Raises:
        UserError: The file is damaged, or a value is off the grid or out of the range of exact arithmetic.
    """
    num_outputs = len(CLASS_NAMES)
    W, b = read_npz(path, W=("float64", (num_inputs, num_outputs)), b=("float64", (num_outputs,)))
    for name, parameter in (("W", W), ("b", b)):
        scaled = parameter * 2.0**K_PARAMETERS
        if not (np.abs(parameter) <= parameter_limit(num_inputs)).all() or (scaled != np.rint(scaled)).any():
            limit = f"magnitude up to {parameter_limit(num_inputs):.1f}"
            raise UserError(
                f"{path}: expected {name} in multiples of 2^-{K_PARAMETERS} of {limit}, found other values: "
                "run `dvc repro` to make it again"
            )
    return W, b


def evaluate(
    resized: Path,
    model_npz: Path,
    evaluate_json: Path,
    predictions_csv: Path,
    class_accuracy_csv: Path,
    errors_npz: Path,
) -> None:
    """Write the metrics, each example's actual and predicted class, the classes' accuracy, and the batch's errors."""
    params = load_params()
    validation = FashionMNIST(resized, params.evaluate.batch_size).validation
    images, actual = validation
    batch = batch_slice(params.evaluate, len(actual), resized)
    W, b = read_model(model_npz, images[0].size)

    print(devices.start(params.runtime.framework, params.runtime.device, params.runtime.devices), flush=True)
    model = softmax_regression(params.runtime.framework, images[0].size)
    model.load(W, b)
    predicted, losses = model.predict(*map(model.to_device, validation))
    correct = predicted == actual
    metrics = {"batch": score(correct[batch], losses[batch]), "validation": score(correct, losses)}
    print(
        f"evaluate: {metrics['batch']['correct']} of {metrics['batch']['examples']} in the validation batch are correct"
    )

    incorrect = np.arange(len(actual))[batch][~correct[batch]]
    named = ((CLASS_NAMES[a], CLASS_NAMES[p]) for a, p in zip(actual, predicted, strict=True))
    publish(
        {
            evaluate_json: json_bytes(metrics),
            predictions_csv: csv_bytes(("actual", "predicted"), named),
            class_accuracy_csv: csv_bytes(("class", "examples", "correct", "accuracy"), class_rows(actual, correct)),
            errors_npz: npz_bytes(
                images=images[incorrect], actual=actual[incorrect], predicted=predicted[incorrect].astype(np.uint8)
            ),
        }
    )


def batch_slice(wanted: Evaluate, examples: int, resized: Path) -> slice:
    """Return which of the validation examples form the batch.

    Raises:
        UserError: The data set has no such batch.
    """
    start = wanted.batch_index * wanted.batch_size
    if start >= examples:
        count = f"{math.ceil(examples / wanted.batch_size)} batches of {wanted.batch_size}"
        raise UserError(
            f"evaluate.batch_index: expected one of the {count} in {resized}, counted from 0, got {wanted.batch_index}"
        )
    return slice(start, start + wanted.batch_size)


def class_rows(actual: NDArray[np.uint8], correct: NDArray[np.bool_]) -> Iterator[tuple[str, int, int, float]]:
    """Yield name, examples, correct ones and accuracy of each class that has examples, in label order."""
    for label, name in enumerate(CLASS_NAMES):
        hits = correct[actual == label]
        if len(hits):
            yield name, len(hits), int(hits.sum()), int(hits.sum()) / len(hits)


if __name__ == "__main__":
    run(evaluate)
