"""Measure speed and memory on this machine, this project beside what one would use instead.

    make bench                                    # all parts, about five minutes on two cores
    python -m tools.proof.bench --runs 1 fit            # a quick look at one part
    python -m tools.proof.bench --json figures.json     # all figures in a file too

    fit      ten epochs: this project, its NumPy oracle, an eager and a ``tf.function`` loop, Keras, scikit-learn
    floor    an epoch against the least that the machine's memory and matrix products would need
    stages   where each stage's time goes: imports, reading, computing, writing
    repro    ``dvc repro`` in a clone of the last commit, from nothing and after a change
    growth   an epoch against the number of images and of pixels

Whatever is compared is measured in turn: run 1 of each, run 2 of each, and so on. Figures are medians over the runs,
with minimum and maximum; ratios are between figures of the same run where there is one of each.
"""

import argparse
import builtins
import functools
import importlib
import importlib.util
import itertools
import json
import os
import re
import resource
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

# A stage is measured in a process that has imported this file: what most stages do not need is imported where used.
from stages.core import command
from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES, read_idx
from stages.core.files import json_bytes, publish
from stages.core.params import Train, load_params

ROOT = Path(__file__).resolve().parent.parent
RAW, RESIZED = Path("data/raw"), Path("data/resized")
MEMORY_BYTES = 2**29  # copied to measure the memory: more than any cache holds
STEPS, SQUARE = 32, 1024
GROWTH = 1.25
"""The time an image-pixel may grow by this factor at four times the images or pixels and still be called linear."""

Figures = dict[str, dict[str, list[float]]]
"""Of a part: row, column with its unit, one value a run."""
Epoch = Callable[[], object]
"""Trains for an epoch and returns when that is done."""


class Task(NamedTuple):
    """What every contestant trains on: images uint8 (n, height, width), labels uint8 (n,), on ``cpu`` or ``gpu``."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    hyper: Train
    device: str


class Fit(NamedTuple):
    """The seconds of each epoch, and the parameters W (d, q) and b (q,) that they ended with."""

    seconds: list[float]
    W: Any
    b: Any


class Target(NamedTuple):
    """A promise: a measured figure and the limit that it may not pass, or ``at_least`` must reach."""

    text: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the measured figure keeps the promise."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def spawn(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> tuple[float, str]:
    """Run a command; return its wall time in seconds and its stdout, or raise ``UserError`` with its last line."""
    start = time.perf_counter()
    done = subprocess.run(words, cwd=cwd, env=os.environ | (env or {}), capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        ours = lines[-1].startswith("bench: ")  # a worker's one line
        raise UserError(lines[-1][7:] if ours else f"expected {words[:4]} to succeed, found: {lines[-1]}")
    return seconds, done.stdout


def worker(*arguments: Any, cwd: Path | None = None, **env: str) -> Any:
    """Call one of ``WORK`` in a process of its own and return its result."""
    words = [sys.executable, "-m", "tools.proof.bench", "--work", json.dumps(arguments)]
    _, output = spawn(*words, cwd=cwd, env=env | {"PYTHONPATH": str(ROOT)})
    return json.loads(output.splitlines()[-1])


def peak_megabytes() -> float:
    """Return the most memory that this process has had resident, in 10^6 bytes."""
    try:
        # getrusage's figure also has what the parent held when it started this process.
        return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024 / 1e6
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


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
    model = softmax_regression(
        framework, task.images[0].size, hyper.lr, hyper.sigma, batch_size=hyper.batch_size, seed=hyper.seed
    )
    X, y = model.to_device(task.images), model.to_device(task.labels)
    rng = np.random.default_rng([hyper.seed, 1])  # FashionMNIST's stream

    def epoch() -> None:
        order = model.to_device(rng.permutation(n).astype(np.int32))
        float(model.fit_epoch(X, y, order)[0])  # waits for the device

    return model, epoch


def project(framework: str, task: Task) -> Fit:
    """Train this project's model."""
    model, epoch = prepare(framework, task)
    return Fit(timed(epoch, task.hyper.epochs), *model.parameters())


def numpy_oracle(task: Task) -> Fit:
    """Train the NumPy oracle, which has no epochs to time one by one."""
    from tools.proof import oracle

    start = time.perf_counter()
    W, b, _ = oracle.train(task.images, task.labels, **asdict(task.hyper))
    return Fit([(time.perf_counter() - start) / task.hyper.epochs] * task.hyper.epochs, W, b)


def float32_pixels(images: NDArray[np.uint8]) -> NDArray[Any]:
    """Return X float32 (n, height * width), from 0 to just below 1."""
    return images.reshape(len(images), -1).astype(np.float32) / 256


def minibatch_loop(compiled: bool, task: Task) -> Fit:
    """Train as Dive into Deep Learning, section 4.4, does: a Python loop over minibatches, float32, a gradient tape.

    Its loader batches, resizes every image on every pass, and shuffles the batches. ``compiled`` makes the step a
    ``tf.function`` and takes the minibatches with ``tf.gather`` instead. The book's validation after each epoch no
    contestant does.
    """
    from stages.runtime.devices import start_tensorflow

    start_tensorflow(task.device, 1)
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
            picked = tf.boolean_mask(y_hat, tf.one_hot(y, q, True, False, dtype=tf.bool))
            loss = -tf.reduce_mean(tf.math.log(picked))
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
    from stages.runtime.devices import start_tensorflow

    os.environ["KERAS_BACKEND"] = "tensorflow"
    start_tensorflow(task.device, 1)
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


def scikit_learn(task: Task) -> Fit:
    """Train scikit-learn's ``SGDClassifier``: one class against the rest, one example a step, on its own schedule."""
    linear_model, epochs = importlib.import_module("sklearn.linear_model"), task.hyper.epochs
    X = float32_pixels(task.images)
    model = linear_model.SGDClassifier(loss="log_loss", max_iter=epochs, tol=None, random_state=task.hyper.seed)
    start = time.perf_counter()
    model.fit(X, task.labels)
    return Fit([(time.perf_counter() - start) / epochs] * epochs, model.coef_.T, model.intercept_)


TENSORFLOW, JAX = "this project, TensorFlow", "this project, JAX"
EAGER, KERAS, SCIKIT_LEARN = "eager loop (book)", "Keras fit", "scikit-learn"
CONTESTANTS: dict[str, Callable[[Task], Fit]] = {
    TENSORFLOW: functools.partial(project, "tensorflow"),
    JAX: functools.partial(project, "jax"),
    "NumPy oracle": numpy_oracle,
    EAGER: functools.partial(minibatch_loop, False),
    "tf.function per step": functools.partial(minibatch_loop, True),
    KERAS: keras_fit,
    SCIKIT_LEARN: scikit_learn,
}
FRAMEWORKS = {"tensorflow": TENSORFLOW, "jax": JAX}
TIMES = "fit / TensorFlow's"
CPU_ONLY = {"NumPy oracle", SCIKIT_LEARN}


def contestants() -> list[tuple[str, str]]:
    """Return the rows that this machine can do: a contestant and its device."""
    from stages.runtime.devices import driver_gpus

    names = [name for name in CONTESTANTS if name != SCIKIT_LEARN or importlib.util.find_spec("sklearn")]
    gpu = [(name, "gpu") for name in names if name not in CPU_ONLY] if driver_gpus() else []
    return [(name, "cpu") for name in names] + gpu


def work_fit(name: str, device: str) -> dict[str, Any]:
    """Train a contestant in this process; return its times, memory, and what it learned."""
    from stages.model.dataset import read_split
    from tools.proof.verify import digest

    images, labels = read_split(RESIZED / "train.npz")
    seconds, W, b = CONTESTANTS[name](Task(images, labels, load_params().train, device))
    peak, W, b = peak_megabytes(), np.asarray(W), np.asarray(b)
    unseen = read_split(RESIZED / "validation.npz")
    predicted = (unseen.images.reshape(len(unseen.labels), -1) / 256 @ W + b).argmax(axis=1)
    accuracy = float((predicted == unseen.labels).mean())
    return {"seconds": seconds, "peak": peak, "accuracy": accuracy, "sha256": digest(W, b)}


def measure_fit(runs: int) -> Figures:
    """Time from data and weights on the device to trained parameters; compilation is the first epoch's surplus."""
    rows, figures = contestants(), Figures()
    for _ in range(runs):
        for name, device in list(rows):
            row = f"{name}, GPU" if device == "gpu" else name
            try:
                found = worker("fit", name, device)
            except UserError as error:
                if device == "cpu":
                    raise
                rows.remove((name, device))
                print(f"{row}: not run: {error}")
                continue
            total, steady = sum(found["seconds"]), statistics.median(found["seconds"][1:] or found["seconds"])
            record(
                figures, row, ("fit s", total), ("compile s", found["seconds"][0] - steady), ("epoch s", steady),
                ("peak MB", found["peak"]), ("accuracy", found["accuracy"]),
            )  # fmt: skip
    baseline = figures[TENSORFLOW]["fit s"]
    for columns in figures.values():
        columns[TIMES] = ratios(columns["fit s"], baseline)
    return figures


def record(figures: Figures, row: str, *values: tuple[str, float]) -> None:
    """Add a run's values to a row."""
    for column, value in values:
        figures.setdefault(row, {}).setdefault(column, []).append(value)


def ratios(values: list[float], others: list[float]) -> list[float]:
    """Divide run by run."""
    return [value / other for value, other in zip(values, others, strict=True)]


def needs(n: int, d: int, q: int) -> tuple[int, int, int]:
    """Count what an epoch over ``n`` images of ``d`` pixels and ``q`` classes cannot do without.

    Returns:
        Bytes from memory, n (d + 5): each image, its label (1) and its index in the order (4), once. Bytes to and from
        the cache, 24 n d: the minibatches as float64, written once and read by both products. Operations, 4 n d q:
        a multiplication and an addition for each term of W @ X.T and of gradient @ X.
    """
    return n * (d + 5), 24 * n * d, 4 * n * d * q


def copy_rate(size: int, repeats: int) -> float:
    """Copy ``size`` bytes, divided among the cores, ``repeats`` times; return bytes read and written a second."""
    cores = os.cpu_count() or 1
    pairs = [(np.empty(size // cores, np.uint8), np.ones(size // cores, np.uint8)) for _ in range(cores)]

    def copy(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
        for _ in range(repeats):
            np.copyto(*pair)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(copy, pairs))  # the first touch of a page is the kernel's work
        (seconds,) = timed(lambda: list(pool.map(copy, pairs)), 1)
    return 2 * sum(target.size for target, _ in pairs) * repeats / seconds


def both_epochs(task: Task) -> dict[str, Epoch]:
    """Return an epoch of this project in each framework, compiled."""
    epochs = {name: prepare(framework, task)[1] for framework, name in FRAMEWORKS.items()}
    for epoch in epochs.values():
        epoch()
    return epochs


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
    compiled, jitted = tf.function(folded, jit_compile=True, autograph=False), jax.jit(scanned)
    return {
        "JAX": lambda: [np.asarray(array) for array in jitted(*arrays)],
        "TensorFlow": lambda: [tensor.numpy() for tensor in compiled(*tensors)],
        "NumPy": lambda: [(X @ W.T, X.T @ D.T) for W, D in zip(*each, strict=True)][-1],  # last: its threads linger
    }


def work_floor(runs: int) -> Figures:
    """Compare an epoch with its floor: the slowest of memory, cache and matrix products, were they to overlap.

    That is the roofline of Williams, Waterman and Patterson (CACM 52(4), 2009, pages 65-76), with the rate of the best
    library at the shapes of the task; a large square product shows what the processor could do. All in this process.
    """
    from stages.model.dataset import read_split

    images, labels = read_split(RESIZED / "train.npz")
    task = Task(images, labels, load_params().train, "cpu")
    d, q, m = images[0].size, len(CLASS_NAMES), task.hyper.batch_size
    from_memory, in_cache, operations = needs(len(labels), d, q)
    epochs = both_epochs(task)
    at_task, at_square = products(STEPS, m, d, q), products(1, SQUARE, SQUARE, SQUARE)
    figures = Figures()

    def least(row: str, need: int, rate: float) -> float:
        record(figures, row, ("needs 1e9", need / 1e9), ("rate 1e9/s", rate / 1e9), ("epoch ms", 1e3 * need / rate))
        return need / rate

    for _ in range(runs):
        memory = least("memory: n (d + 5) bytes", from_memory, copy_rate(MEMORY_BYTES, 2))
        cache = least("minibatches in cache: 24 n d bytes", in_cache, copy_rate(8 * m * d, 200))
        multiply = min(
            least(f"{name} ({q},{d})x({d},{m}): 4 n d q", operations, STEPS * 4 * m * d * q / min(timed(both, 4)[1:]))
            for name, both in at_task.items()
        )
        for name, both in at_square.items():
            least(f"{name}, {SQUARE} square: 4 n d q", operations, 4 * SQUARE**3 / min(timed(both, 4)[1:]))
        floor = max(memory, cache, multiply)
        record(figures, "floor", ("epoch ms", 1e3 * floor))
        for name, epoch in epochs.items():
            steady = statistics.median(timed(epoch, 3))
            record(figures, name, ("epoch ms", 1e3 * steady), ("epoch / floor", steady / floor))
    return figures


IMPORTS, READING, WRITING = "imports s", "reading s", "writing s"
COUNTED = dict.fromkeys(("read_source", "read_idx", "read_npz", "read_csv"), READING) | dict.fromkeys(
    ("publish", "npz_bytes", "json_bytes", "csv_bytes"), WRITING
)
BARE = "import tensorflow"
PER_IMPORT = f"/ {BARE}"


class Clock:
    """The seconds spent in the functions that it counts, by kind; of nested ones the outermost counts."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((IMPORTS, READING, WRITING), 0.0)
        self.busy = False

    def counting(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function``, counted as ``kind``."""

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.busy:
                return function(*args, **kwargs)
            self.busy, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.busy = False
                self.seconds[kind] += time.perf_counter() - start

        return counted


def work_stage(verb: str, paths: list[str], started: float) -> dict[str, Any]:
    """Run a stage as its command would; return what was spent on imports, reading and writing."""
    clock, run = Clock(), command.run

    def entered(stage: Callable[..., None]) -> None:
        clock.seconds[IMPORTS] = time.time() - started
        for name in [name for name in sys.modules if name == "__main__" or name.startswith("stages.")]:
            names = vars(sys.modules[name])
            names.update({key: clock.counting(COUNTED[key], names[key]) for key in COUNTED.keys() & names})
        builtins.__import__ = clock.counting(IMPORTS, builtins.__import__)
        run(stage)

    command.run, sys.argv[1:] = entered, paths
    runpy.run_module(f"stages.{verb}", run_name="__main__", alter_sys=True)
    return {"peak MB": peak_megabytes(), **clock.seconds}


def work_import(module: str) -> dict[str, float]:
    """Import a module in this process; return the seconds, and the peak of a process that does only that."""
    (seconds,) = timed(lambda: importlib.import_module(module), 1)
    return {IMPORTS: seconds, "peak MB": peak_megabytes()}


def stage_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield verb and paths of each stage in dvc.yaml."""
    for verb, stage in yaml.safe_load(Path("dvc.yaml").read_text())["stages"].items():
        yield verb, stage["cmd"].split(f"stages.{verb} ")[1].split()


def measure_stages(runs: int) -> Figures:
    """Divide each stage's time, without DVC.

    Imports: from the start of the process to ``command.run``, and every import after it. Reading: files with the
    checks of their content. Writing: encoders and ``publish``. Computing: the rest, with drawing and the process's end.
    """
    commands, figures = list(stage_commands()), Figures()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        (Path(scratch) / "params.yaml").write_bytes(command.PARAMS.read_bytes())
        for _ in range(runs):
            for verb, paths in commands:
                start = time.time()
                found = worker("stage", verb, paths, start, cwd=Path(scratch), FASHION_MNIST_DIR=str(RAW.resolve()))
                wall, peak = time.time() - start, found.pop("peak MB")
                split = (IMPORTS, found[IMPORTS]), (READING, found[READING]), (WRITING, found[WRITING])
                computing = wall - sum(found.values())
                record(figures, verb, ("wall s", wall), *split, ("computing s", computing), ("peak MB", peak))
            record(figures, BARE, *worker("import", BARE.split()[1]).items())
    return figures


COLD, LR, COLUMNS, NOTHING, STATUS = "from nothing", "train.lr changed", "render.columns changed", "no change", "status"


def measure_repro(runs: int) -> Figures:
    """Time ``dvc repro`` in a fresh clone of the last commit, with the raw files at hand and no cache."""
    figures = Figures()
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
            clone = Path(scratch) / "clone"
            spawn("git", "clone", "--quiet", "--no-local", ".", str(clone))
            # No cache and no settings but the project's; stages are run by the python on PATH.
            env = dict.fromkeys(("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR"), scratch)
            env |= {"FASHION_MNIST_DIR": str(RAW.resolve()), "DVC_NO_ANALYTICS": "1"}
            env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

            def dvc(row: str, *words: str, clone: Path = clone, env: dict[str, str] = env) -> None:
                seconds, _ = spawn(sys.executable, "-m", "dvc", *words, cwd=clone, env=env)
                record(figures, row, ("s", seconds))

            for folder in ("metrics", "plots"):
                shutil.rmtree(clone / folder)  # Git brings them, and DVC would run no stage that only makes these
            committed = load_params(clone / "params.yaml")
            dvc(COLD, "repro")
            set_parameter(clone / "params.yaml", "lr", committed.train.lr / 2)
            dvc(LR, "repro")
            columns = committed.render.columns
            set_parameter(clone / "params.yaml", "columns", columns - 1 if columns > 1 else 2)
            dvc(COLUMNS, "repro")
            for _ in range(3):  # short: a few more, for their minimum
                dvc(NOTHING, "repro")
                dvc(STATUS, "status")
            record(figures, BARE, ("s", spawn(sys.executable, "-c", BARE)[0]))
    bare = statistics.median(figures[BARE]["s"])
    for columns_ in figures.values():
        columns_[PER_IMPORT] = [seconds / bare for seconds in columns_["s"]]
    return figures


def set_parameter(path: Path, key: str, value: object) -> None:
    """Change the value of a key that only one section of params.yaml has."""
    path.write_text(re.sub(rf"(?m)^(  {key}: )\S+", rf"\g<1>{value}", path.read_text()))


def work_growth(runs: int) -> Figures:
    """Time both frameworks' epochs, in turn, at each size, and fit a line: fixed time and time an image-pixel."""
    from stages.resize import resize_with_pad

    raw, labels = read_idx(RAW / "train-images-idx3-ubyte"), read_idx(RAW / "train-labels-idx1-ubyte")
    n, hyper, figures = len(labels), load_params().train, Figures()
    sizes = [(n, 32), (4 * n, 32), (n, 64), (n // 4, 32), (n, 28)]
    epochs: dict[tuple[str, int], Epoch] = {}
    for count, side in sizes:
        resized = resize_with_pad(raw, side, side)
        task = Task(np.resize(resized, (count, side, side)), np.resize(labels, count), hyper, "cpu")  # repeats
        for name, epoch in both_epochs(task).items():
            epochs[f"{name}, {count} at {side}x{side}", task.images.size] = epoch
    for _, ((row, pixels), epoch) in itertools.product(range(runs), epochs.items()):
        (seconds,) = timed(epoch, 1)
        record(figures, row, ("epoch s", seconds), ("ns a pixel", 1e9 * seconds / pixels))
    for name in FRAMEWORKS.values():
        rows = [figures[f"{name}, {count} at {side}x{side}"] for count, side in sizes]
        for columns in rows[1:3]:
            columns["growth"] = ratios(columns["ns a pixel"], rows[0]["ns a pixel"])
        for seconds_at in zip(*(columns["epoch s"] for columns in rows), strict=True):
            slope, fixed = np.polyfit([count * side**2 for count, side in sizes], seconds_at, 1)
            record(figures, f"{name}, line", ("fixed ms", 1e3 * float(fixed)), ("ns a pixel", 1e9 * float(slope)))
    return figures


WORK: dict[str, Callable[..., Any]] = {
    "fit": work_fit,
    "floor": work_floor,
    "stage": work_stage,
    "import": work_import,
    "growth": work_growth,
}
PARTS: dict[str, Callable[[int], Figures]] = {
    "fit": measure_fit,
    "floor": functools.partial(worker, "floor"),
    "stages": measure_stages,
    "repro": measure_repro,
    "growth": functools.partial(worker, "growth"),
}


def targets(parts: dict[str, Figures]) -> list[Target]:
    """Compare the figures of the parts that were measured with what the project promises."""
    found = []

    def middle(part: str, row: str, column: str) -> float:
        return statistics.median(parts[part][row][column])

    if "fit" in parts:
        for row, limit in ((EAGER, 15.0), (KERAS, 5.0), (JAX, 1.0)):
            ratio = middle("fit", row, TIMES)
            found.append(Target(f"fit of {row} / {TENSORFLOW}", ratio, limit, at_least=True))
        for row in (f"{TENSORFLOW}, GPU", f"{JAX}, GPU"):
            if row in parts["fit"]:
                columns = parts["fit"][row]
                warm = [
                    total - compiling for total, compiling in zip(columns["fit s"], columns["compile s"], strict=True)
                ]
                found.append(Target(f"epoch of {row}, s", middle("fit", row, "epoch s"), 0.030))
                found.append(Target(f"fit less compile of {row}, s", statistics.median(warm), 0.5))
    if "floor" in parts:
        found += [
            Target(f"epoch / floor of {row}", middle("floor", row, "epoch / floor"), 3.0) for row in (TENSORFLOW, JAX)
        ]
    if "stages" in parts:
        above = middle("stages", "train", "peak MB") - middle("stages", BARE, "peak MB")
        found.append(Target(f"peak of train above {BARE}, MB", above, 1000.0))
    if "repro" in parts:
        for row, limit in ((COLD, 3.6), (LR, 2.8)):
            found.append(Target(f"dvc repro, {row} / {BARE}", middle("repro", row, PER_IMPORT), limit))
        extra = min(parts["repro"][NOTHING]["s"]) - min(parts["repro"][STATUS]["s"])
        found.append(Target(f"dvc repro, {NOTHING}, less dvc status (minima), s", extra, 0.3))
    for name in FRAMEWORKS.values() if "growth" in parts else ():
        rows = [columns for row, columns in parts["growth"].items() if row.startswith(name) and "growth" in columns]
        growth = max(statistics.median(columns["growth"]) for columns in rows)
        found.append(Target(f"time an image-pixel at 4 n / at n, {name}", growth, GROWTH))
    return found


def number(value: float) -> str:
    """Write a figure to three significant digits, or all digits of its whole part."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def summary(values: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)}


def cell(values: list[float] | None) -> str:
    """Write median and spread, or the one value; nothing for none."""
    median, low, high = map(number, summary(values).values()) if values else ("", "", "")
    return median if low == high else f"{median} ({low} to {high})"


def figures_table(part: str, figures: Figures) -> str:
    """Return a part's table; a cell is empty where a row has no such figure."""
    from tools.common.tables import aligned

    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    return aligned([[part, *columns], *([name, *(cell(row.get(c)) for c in columns)] for name, row in figures.items())])


def targets_table(found: list[Target]) -> str:
    """Return the table of targets."""
    from tools.common.tables import aligned

    rows = (
        [t.text, number(t.measured), f"{'>=' if t.at_least else '<='} {t.limit:g}", "met" if t.met else "missed"]
        for t in found
    )
    return aligned([["target", "measured", "limit", "verdict"], *rows])


def main() -> None:
    """Measure the parts that the command line names; print their tables and the targets."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--runs", default="3", metavar="N", help="default: 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.work:
            name, *rest = arguments.work
            print(json.dumps(WORK[name](*rest)))
        else:
            bench(arguments.parts, arguments.runs, arguments.json)
    except (UserError, OSError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        sys.exit(130)


def bench(names: list[str], runs_text: str, json_file: Path | None) -> None:
    """Measure ``names``, all parts if there is none; raise ``UserError`` for what cannot be measured."""
    for name in names:
        if name not in PARTS:
            raise UserError(f"expected parts from {', '.join(PARTS)}, got {name!r}")
    if not runs_text.isdecimal() or not 1 <= int(runs_text) <= 100:
        raise UserError(f"--runs: expected a whole number from 1 to 100, got {runs_text!r}")
    if json_file and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise UserError(f"--json: expected a file in a folder that is there, got {json_file}")
    params, runs = load_params(), int(runs_text)
    for folder in (RAW, RESIZED):
        if not folder.is_dir():
            raise UserError(f"{folder}: expected the data set, found nothing: run `dvc repro --quiet resize`")
    from tools.common.machine import machine

    described, hyper = machine(), params.train
    print(*described, f"runs: {runs}; {hyper}", sep="\n")
    print("figures: median (minimum to maximum)", flush=True)
    parts = {}
    for name in [name for name in PARTS if name in (names or PARTS)]:
        print(flush=True)
        parts[name] = PARTS[name](runs)
        print(figures_table(name, parts[name]), flush=True)
    found = targets(parts)
    print(f"\n{targets_table(found)}")
    if json_file:
        content = {
            "machine": described,
            "runs": runs,
            "train": asdict(hyper),
            "parts": {
                part: {
                    row: {column: summary(values) for column, values in columns.items()}
                    for row, columns in rows.items()
                }
                for part, rows in parts.items()
            },
            "targets": {target.text: target._asdict() | {"met": target.met} for target in found},
        }
        publish({json_file: json_bytes(content)})


if __name__ == "__main__":
    main()
