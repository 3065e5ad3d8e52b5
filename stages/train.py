"""Train softmax regression from scratch.

    python -m stages.train data/resized data/model.npz metrics/train.json plots/history.csv

Ten epochs at 32x32 take about two seconds on two cores, the start of TensorFlow apart, and end at a training loss of
0.453975 and a validation accuracy of 0.8217 on every machine.
"""

from pathlib import Path

import numpy as np

from stages.core.command import run
from stages.core.files import csv_bytes, json_bytes, npz_bytes, publish
from stages.core.params import load_params
from stages.model.dataset import FashionMNIST
from stages.model.frameworks import softmax_regression
from stages.model.scaffold import Epoch, Trainer
from stages.runtime import devices
from stages.runtime.distributed import check_same_start, initialize, is_coordinator


def train(resized: Path, model_npz: Path, train_json: Path, history_csv: Path) -> None:
    """Write the parameters, the final losses and accuracy, and the history with one row per epoch."""
    params = load_params()
    runtime, hyper = params.runtime, params.train
    data = FashionMNIST(resized, hyper.batch_size, hyper.seed)
    num_inputs = data.train.images[0].size
    with initialize(runtime.framework):
        print(devices.start(runtime.framework, runtime.device, runtime.devices), flush=True)
        model = softmax_regression(
            runtime.framework, num_inputs, hyper.lr, hyper.sigma, batch_size=hyper.batch_size, seed=hyper.seed
        )
        check_same_start(*data.train, *data.validation)
        history = Trainer(hyper.epochs, silent=not is_coordinator()).fit(model, data)
        W, b = (np.asarray(parameter) for parameter in model.parameters())
    final = history[-1]._asdict()
    del final["epoch"]
    if is_coordinator():
        publish(
            {
                model_npz: npz_bytes(W=W, b=b),
                train_json: json_bytes(final),
                history_csv: csv_bytes(Epoch._fields, history),
            }
        )


if __name__ == "__main__":
    run(train)
