"""Check the promise on this machine: every implementation, device, number of them, of threads, and instruction set.

    make verify            # trains the committed parameters in every way that this machine can
    make verify EPOCHS=1   # a quick look

Each row is a process of its own. It first checks the assumptions A1 to A4 of docs/reproducibility.md, for exp and log
exhaustively, and then trains. The exit code is 1 if an assumption fails or a model differs.
"""

import argparse
import hashlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from stages.core.command import UserError
from stages.core.files import npz_bytes
from stages.core.params import Train, load_params
from stages.model.dataset import FashionMNIST
from stages.model.frameworks import softmax_regression
from stages.runtime import devices
from stages.runtime.distributed import initialize
from stages.runtime.driver import driver_gpus
from tools.common.machine import cpuinfo, machine
from tools.proof import oracle

RESIZED = Path("data/resized")
EXP_SHA256 = "537ce2794ff948b80572fd0ef5dd7c9d56c3dfa4c36d0a53c2b620aefe28066e"
LOG_SHA256 = "47e52e765afb1c7cc70e1c9e0b23b86f02be70ed98c244830c4a8c647799be12"
CHUNK = 2**20

IMPLEMENTATIONS = {
    "numpy": "NumPy oracle",
    "tensorflow-graph": "TensorFlow graph",
    "tensorflow-xla": "TensorFlow XLA",
    "jax": "JAX",
}
# What NumPy's and OpenBLAS's, oneDNN's and XLA's kernels can be told to use.
INSTRUCTION_SETS = {
    "SSE4.2": {
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
        "OPENBLAS_CORETYPE": "Nehalem",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
    },
    "AVX2": {
        "NPY_DISABLE_CPU_FEATURES": "X86_V4",
        "OPENBLAS_CORETYPE": "Haswell",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
    "AVX-512": {
        "OPENBLAS_CORETYPE": "SkylakeX",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX512",
    },
}
CPU_FLAGS = {"SSE4.2": "sse4_2", "AVX2": "avx2", "AVX-512": "avx512dq"}


class Row(NamedTuple):
    """One way to train: on cpu or gpu, with 1 thread or all, and so many devices in each of so many processes."""

    implementation: str
    device: str = "cpu"
    threads: str = "all"
    instruction_set: str = "best"
    devices: str = "1"
    processes: str = "1"


class Operations(NamedTuple):
    """What a framework calls its functions, and how it compiles one."""

    exp: Callable[[Any], Any]
    log: Callable[[Any], Any]
    round: Callable[[Any], Any]
    compile: Callable[[Callable[..., Any]], Callable[..., Any]]


def rows() -> Iterator[Row]:
    """Yield the rows that this machine can do."""
    flags = cpuinfo("flags").split()
    for implementation in IMPLEMENTATIONS:
        yield Row(implementation)
        yield Row(implementation, threads="1")
        for name, flag in CPU_FLAGS.items():
            if flag in flags:
                yield Row(implementation, instruction_set=name)
    for parts in (2, 3, 4, 8):  # of the CPU, that share each minibatch
        yield Row("jax", devices=str(parts))
    yield Row("jax", processes="2")
    if count := driver_gpus():
        for implementation in IMPLEMENTATIONS:
            if implementation != "numpy":
                yield Row(implementation, device="gpu")
        if count > 1:
            yield Row("jax", device="gpu", devices=str(count))


def environment(row: Row) -> dict[str, str]:
    """Return the environment of a row's process."""
    variables = dict(os.environ) | INSTRUCTION_SETS.get(row.instruction_set, {})
    if row.threads == "1":
        variables |= {"OPENBLAS_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
        variables["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    return variables


def operations(implementation: str) -> Operations:
    """Return the operations of an implementation whose framework has been started."""
    if implementation == "numpy":
        return Operations(np.exp, np.log, np.round, lambda function: function)
    if implementation == "jax":
        import jax
        import jax.numpy as jnp

        import stages.model.softmax_jax  # noqa: F401 - switches JAX to float64

        return Operations(jnp.exp, jnp.log, jnp.round, jax.jit)
    import tensorflow as tf

    return Operations(
        tf.exp,
        tf.math.log,
        tf.round,
        lambda function: tf.function(function, jit_compile=implementation.endswith("xla")),
    )


def failed_assumptions(ops: Operations) -> list[str]:
    """Check A1, A2 and A4 of docs/reproducibility.md; return those that fail, in words."""

    def agrees(function: Callable[..., Any], arguments: tuple[Any, ...], expected: Any) -> bool:
        return np.array_equal(np.asarray(ops.compile(function)(*arguments)), expected)

    def sha256_over(numbers: range, function: Callable[[Any], Any]) -> str:
        compiled, sha256 = ops.compile(function), hashlib.sha256()
        for start in range(numbers.start, numbers.stop, CHUNK):
            chunk = np.arange(start, min(start + CHUNK, numbers.stop), dtype=np.float64)
            sha256.update(np.asarray(compiled(chunk)).astype("<i4").tobytes())
        return sha256.hexdigest()

    ties = np.arange(-1000, 1000) + 0.5
    x, W = exact_product()
    a, s, quotients = quotients_at_the_margin()
    checks = {
        "A1: rounding half to even": agrees(ops.round, (ties,), 2 * np.rint(ties / 2)),
        "A2: exact sums in a matrix product": agrees(lambda x, W: x @ W, (x / 256, W / 2.0**26), x @ W / 2.0**34),
        "A4: exp": sha256_over(range(17 * 2**20), lambda j: ops.round(ops.exp(-j / 2.0**20) * 2.0**22)) == EXP_SHA256,
        "A4: log": sha256_over(range(1, 2**24 + 1), lambda n: ops.round(ops.log(n / 2.0**24) * 2.0**20)) == LOG_SHA256,
        "A4: division": agrees(lambda a, s: ops.round(a / s * 2.0**24), (a, s), quotients),
    }
    return [name for name, holds in checks.items() if not holds]


def exact_product() -> tuple[Any, Any]:
    """Return grey levels (256, 1024) and weights (1024, 10) in steps of 2^-26, int64, at the limit of exactness."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (256, 1024)), rng.integers(-513 * 2**26, 513 * 2**26 + 1, (1024, 10))


def quotients_at_the_margin() -> tuple[Any, Any, Any]:
    """Return fractions a/s, as float64, as near to a rounding boundary of the grid 2^-24 as they can be, and on it.

    a * 2^25 = +-1 modulo s makes a/s miss an odd multiple of 2^-25 by 1/(s 2^25); s = 2^25 meets it. The third array
    holds a/s * 2^24 rounded half to even in whole numbers.
    """
    rng = np.random.default_rng(0)
    pairs = [(a, 2**25) for a in range(1, 2**12)]
    for s in (rng.integers(2**21, 10 * 2**21, 20_000) * 2 + 1).tolist():
        inverse = pow(2**25, -1, s)
        pairs += [(a, s) for a in (inverse, s - inverse) if a <= 2**22]
    a, s = np.array(pairs).T
    quotient, rest = np.divmod(a << 24, s)
    rounded = quotient + ((2 * rest > s) | ((2 * rest == s) & (quotient % 2 == 1)))
    return a.astype(np.float64), s.astype(np.float64), rounded.astype(np.float64)


def folded_constants(program: str) -> list[str]:
    """Return what breaks A3 in the text of an optimized XLA program: scales of matrix products, by their value.

    XLA's calls of a GPU's matrix library carry them as ``alpha_real`` and ``alpha_imag``.
    """
    scales = re.findall(r'"alpha_(?:real|imag)"\s*:\s*"?([-+.\deE]+)', program)
    return [scale for scale in scales if float(scale) and np.frexp(abs(float(scale)))[0] != 0.5]


def compiled_program(model: Any, arguments: tuple[Any, ...]) -> str:
    """Return the text of a model's optimized ``fit_epoch``, in either framework."""
    if hasattr(model.fit_epoch, "experimental_get_compiler_ir"):
        return str(model.fit_epoch.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo"))
    from stages.model import softmax_jax

    return str(softmax_jax.fit_epoch.lower(model.state, *arguments, model.lr, model.batch_size).compile().as_text())


def addresses(count: int) -> Iterator[dict[str, str]]:
    """Yield what the environments of processes that train together say of each other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    for process in range(count):
        yield {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(process)}


def work(row: Row, hyper: Train) -> dict[str, Any]:
    """Check the assumptions and train, in this process; return the model's hash and the times."""
    if row.threads == "1" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    data = FashionMNIST(RESIZED, hyper.batch_size, hyper.seed)
    images, labels = data.train
    if row.implementation == "numpy":
        failed = failed_assumptions(operations("numpy"))
        start = time.perf_counter()
        W, b, _ = oracle.train(images, labels, **asdict(hyper))
        seconds = [(time.perf_counter() - start) / hyper.epochs] * hyper.epochs
        place = "CPU"
    else:
        framework = row.implementation.partition("-")[0]
        place = devices.start(framework, row.device, int(row.devices)).removeprefix(f"{framework} on ")
        failed = failed_assumptions(operations(row.implementation))
        model: Any = softmax_regression(
            framework, images[0].size, hyper.lr, hyper.sigma, batch_size=hyper.batch_size, seed=hyper.seed
        )
        if row.implementation == "tensorflow-graph":
            import tensorflow as tf

            model.fit_epoch = tf.function(model.fit_epoch.python_function)
        X, y = model.to_device(images), model.to_device(labels)
        seconds = []
        for _ in range(hyper.epochs):
            order = model.to_device(data.train_dataloader())
            start = time.perf_counter()
            float(model.fit_epoch(X, y, order)[0])
            seconds.append(time.perf_counter() - start)
        if row.implementation != "tensorflow-graph":
            failed += [f"A3: scale {scale}" for scale in folded_constants(compiled_program(model, (X, y, order)))]
        W, b = (np.asarray(parameter) for parameter in model.parameters())
        if row.device == "gpu":
            place += f", peak {peak_memory(row.implementation) / 2**20:.0f} MiB"
    return {
        "place": place,
        "failed": failed,
        "first": seconds[0],
        "steady": statistics.median(seconds[1:]) if seconds[1:] else None,
        "sha256": digest(W, b),
        "md5": hashlib.md5(npz_bytes(W=W, b=b), usedforsecurity=False).hexdigest(),
    }


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


def run(row: Row, epochs: int) -> dict[str, Any]:
    """Run a row in processes of its own; if one ends with an error, the last line of that is under ``error``."""
    command = [sys.executable, "-m", "tools.proof.verify", f"--epochs={epochs}", "--row", *row]
    start = time.perf_counter()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(command, env=environment(row) | variables, **pipes)
        for variables in addresses(int(row.processes))
    ]
    for process, (_, stderr) in zip(started, ended := [process.communicate() for process in started], strict=True):
        if process.returncode:
            return {"error": (stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]}
    result: dict[str, Any] = json.loads(ended[0][0].splitlines()[-1])
    return result | {"wall": time.perf_counter() - start}


def recorded_md5() -> str:
    """Return the MD5 of data/model.npz that dvc.lock records."""
    outs = yaml.safe_load(Path("dvc.lock").read_text())["stages"]["train"]["outs"]
    return str(next(out["md5"] for out in outs if out["path"] == "data/model.npz"))


def epochs(text: str) -> int:
    """Read the command line's number of epochs."""
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1000, got {text!r}")
    return int(text)


def main() -> None:
    """Print the table, row by row, and the verdict."""
    parser = argparse.ArgumentParser(prog="verify", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=epochs, metavar="N", help="default: train.epochs")
    parser.add_argument("--row", nargs=len(Row._fields), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        committed = load_params().train
    except UserError as error:
        sys.exit(f"verify: {error}")
    hyper = replace(committed, epochs=arguments.epochs or committed.epochs)
    if arguments.row:
        try:
            with initialize(arguments.row[0].split("-")[0]):
                print(json.dumps(work(Row(*arguments.row), hyper)))
        except UserError as error:
            print(json.dumps({"cannot": str(error)}))
        return

    print(*machine(), sep="\n")
    print(f"epochs: {hyper.epochs}; seconds: first epoch with compilation, median of the others, whole process\n")
    layout = "{:17} {:30} {:7} {:7} {:>6} {:>6} {:>6}  {}"
    print(layout.format("implementation", "device", "threads", "set", "first", "epoch", "whole", "SHA-256 of W, b"))
    reference, bad = None, 0
    for row in rows():
        result = run(row, hyper.epochs)
        seconds = [f"{result[column]:.2f}" if result.get(column) else "-" for column in ("first", "steady", "wall")]
        if "sha256" in result:
            reference = reference or result
            same = result["sha256"] == reference["sha256"]
            verdict = f"{result['sha256'][:16]} {'same' if same else 'DIFFERENT'}"
            verdict += "".join(f"; {assumption} does not hold" for assumption in result["failed"])
            bad += not same or bool(result["failed"])
        else:
            verdict = f"not run: {result['cannot']}" if "cannot" in result else f"failed: {result['error']}"
            bad += "error" in result
        place = result.get("place", row.device)
        cells = (IMPLEMENTATIONS[row.implementation], place, row.threads, row.instruction_set, *seconds, verdict)
        print(layout.format(*cells), flush=True)
    if reference and hyper == committed:
        recorded = reference["md5"] == recorded_md5()
        bad += not recorded
        print(f"\nThe model is {'' if recorded else 'NOT '}the one that dvc.lock records: {reference['sha256']}")
    if bad or not reference:
        sys.exit("verify: expected the same model in every row and every assumption to hold: see the table")
    print("Every row that ran gives the same model, and every assumption holds.")


if __name__ == "__main__":
    main()
