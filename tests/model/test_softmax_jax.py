"""Each minibatch shared among devices: the bits of one, whatever their number, and what XLA makes of it."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.proof import oracle

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (1, 3)  # each a process that compiles three programs
# Of examples and of a minibatch: with a short last one, of one example, in one step.
SHAPES = ((600, 256), (3, 1), (22, 256))
SCRIPT = """
import hashlib, json, sys
import numpy as np
from stages.model.frameworks import softmax_regression
from stages.runtime import devices

print(devices.start("jax", "cpu", int(sys.argv[1])))
from tools.proof.assumptions import compiled_program

RNG = np.random.default_rng(4)
images, labels = RNG.integers(0, 256, (600, 6, 5), dtype=np.uint8), RNG.integers(0, 10, 600, dtype=np.uint8)
results, programs = [], []
for n, batch_size in json.loads(sys.argv[2]):
    model = softmax_regression("jax", 30, 1.7, 0.01, batch_size=batch_size, seed=3)
    X, y, rng = model.to_device(images[:n]), model.to_device(labels[:n]), np.random.default_rng([3, 1])
    sums = []
    for _ in range(2):
        order = model.to_device(rng.permutation(n).astype(np.int32))
        sums.append([float(value).hex() for value in model.fit_epoch(X, y, order)])
    parameters = b"".join(np.asarray(parameter).tobytes() for parameter in model.parameters())
    scored = b"".join(np.asarray(array).tobytes() for array in model.validation_step(X[: n // 2 + 1], y[: n // 2 + 1]))
    results.append([hashlib.sha256(parameters).hexdigest(), sums, hashlib.sha256(scored).hexdigest()])
    if batch_size == 256:
        programs.append(compiled_program(model, (X, y, order)))
print(json.dumps([results, *programs]))
"""


@pytest.fixture(scope="module")
def run(environment: dict[str, str]) -> Callable[[int], Any]:
    """By the number of devices: the results for all shapes, and the compiled programs of the first and the last."""

    @cache
    def run(count: int) -> Any:
        command = [sys.executable, "-c", SCRIPT, str(count), json.dumps(SHAPES)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said, printed = done.stdout.splitlines()
        assert said == "jax on CPU" + (f", {count} devices" if count > 1 else "")
        return json.loads(printed)

    return run


def test_one_device_has_the_oracle_s_bits(run: Callable[[int], Any]) -> None:
    rng = np.random.default_rng(4)
    images, labels = rng.integers(0, 256, (600, 6, 5), dtype=np.uint8), rng.integers(0, 10, 600, dtype=np.uint8)
    for (n, batch_size), (sha256, sums, _) in zip(SHAPES, run(1)[0], strict=True):
        expected = oracle.train(images[:n], labels[:n], epochs=2, batch_size=batch_size, seed=3, lr=1.7, sigma=0.01)
        assert sha256 == hashlib.sha256(expected.W.tobytes() + expected.b.tobytes()).hexdigest()
        assert [float.fromhex(loss) / n for loss, _ in sums] == expected.losses


def test_parameters_losses_and_logits_are_those_of_one_device(run: Callable[[int], Any]) -> None:
    assert run(3)[0] == run(1)[0]


@pytest.mark.parametrize("count", COUNTS)
def test_a_step_exchanges_gradients_in_one_all_reduce_and_on_one_device_nothing(
    run: Callable[[int], Any], count: int
) -> None:
    exchange = re.compile(r" (all|collective|reduce-scatter)[\w-]*\(")
    exchanges = [line for line in run(count)[1].splitlines() if exchange.search(line)]
    in_loop = [line.split(" all-reduce(")[0] for line in exchanges if "while/body" in line]

    assert bool(exchanges) == (count > 1)
    assert [re.findall(r"f64\[[\d,]*\]", shapes) for shapes in in_loop] == [["f64[10,30]", "f64[10]"]] * (count > 1)


@pytest.mark.parametrize("count", COUNTS)
def test_each_device_computes_on_its_shard_of_the_images(run: Callable[[int], Any], count: int) -> None:
    rows = {int(n) for n in re.findall(r"f64\[(\d+),30\]", run(count)[2])}

    assert rows - {10} == {-(-22 // count)}  # of 22 examples; the matrix of 10 rows is the gradient
