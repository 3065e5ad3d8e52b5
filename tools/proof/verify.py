"""Check the promise on this machine: every implementation, device, number of them, of threads, and instruction set.

    make verify            # trains the committed parameters in every way that this machine can
    make verify EPOCHS=1   # a quick look

Each row is a process of its own. It first checks the assumptions A1 to A4 of docs/reproducibility.md, for exp and log
exhaustively, and then trains. The last rows check without a GPU what an NVIDIA GPU would run, where the packages for
it are installed (EXTRAS=proof). The exit code is 1 if an assumption fails or a model differs.
"""

import argparse
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from stages.core.command import UserError
from stages.core.params import load_params
from stages.runtime.driver import driver_gpus
from tools.common.machine import cpuinfo, machine
from tools.proof.training import Row

PROOF_PACKAGES = "jax-cuda12-plugin", "llvmlite", "nvidia-cuda-nvcc-cu12"

IMPLEMENTATIONS = {
    "numpy": "NumPy oracle",
    "tensorflow-graph": "TensorFlow graph",
    "tensorflow-xla": "TensorFlow XLA",
    "jax": "JAX",
}
# What NumPy's and OpenBLAS's, oneDNN's and XLA's kernels can be set to use.
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


def addresses(count: int) -> Iterator[dict[str, str]]:
    """Yield what the environments of processes that train together say of each other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    for process in range(count):
        yield {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(process)}


def run(row: Row, epochs: int) -> dict[str, Any]:
    """Run a row in processes of its own."""
    command = ["tools.proof.training", f"--epochs={epochs}", *row]
    start = time.perf_counter()
    result: dict[str, Any] = printed(*((command, environment(row) | each) for each in addresses(int(row.processes))))
    return result | {"wall": time.perf_counter() - start}


def printed(*processes: tuple[list[str], dict[str, str]]) -> Any:
    """Run modules with arguments and environments at once; return what the first printed as JSON, in its last line.

    If one ends with an error, its last line of that is returned under ``error``.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-m", *words], env=env, **pipes) for words, env in processes]
    for process, (_, stderr) in zip(started, ended := [process.communicate() for process in started], strict=True):
        if process.returncode:
            return {"error": (stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]}
    return json.loads(ended[0][0].splitlines()[-1])


def proofs() -> Iterator[dict[str, Any]]:
    """Yield what is proved of NVIDIA GPUs without one, or what keeps it from being proved."""
    installed = {package.name for package in importlib.metadata.distributions()}
    if missing := [name for name in PROOF_PACKAGES if name not in installed]:
        yield {"cannot": f"expected {', '.join(missing)}, found none: make verify EXTRAS=proof installs them"}
        return
    for module in ("libdevice", "gpu_program"):
        results = printed(([f"tools.proof.{module}"], dict(os.environ)))
        yield from results if isinstance(results, list) else [results]


def recorded_md5() -> str:
    """Return the MD5 of data/model.npz that dvc.lock records."""
    outs = yaml.safe_load(Path("dvc.lock").read_text())["stages"]["train"]["outs"]
    return str(next(out["md5"] for out in outs if out["path"] == "data/model.npz"))


def epochs(text: str) -> int:
    """Read the command line's number of epochs."""
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1000, got {text!r}")
    return int(text)


def verdict(result: dict[str, Any], reference: dict[str, Any]) -> tuple[str, bool]:
    """Return what to say of a row, beside the first that trained, and whether it is bad."""
    if "cannot" in result or "error" in result:
        return (f"not run: {result['cannot']}", False) if "cannot" in result else (f"failed: {result['error']}", True)
    breaks = "".join(f"; breaks {assumption}" for assumption in result["failed"])
    if "sha256" not in result:
        return ("does not hold" if breaks else "holds") + f"{breaks}; {result['found']}", bool(breaks)
    same = result["sha256"] == reference["sha256"]
    return f"{result['sha256'][:16]} {'same' if same else 'DIFFERENT'}{breaks}", not same or bool(breaks)


def main() -> None:
    """Print the table, row by row, and the verdict."""
    parser = argparse.ArgumentParser(
        prog="verify", description="Train in every way that this machine can, and check that the model is the same."
    )
    parser.add_argument("--epochs", type=epochs, metavar="N", help="default: train.epochs")
    arguments = parser.parse_args()
    try:
        committed = load_params().train
    except UserError as error:
        sys.exit(f"verify: {error}")
    hyper = replace(committed, epochs=arguments.epochs or committed.epochs)

    print(*machine(), sep="\n")
    print(f"epochs: {hyper.epochs}; seconds: first epoch with compilation, median of the others, whole process\n")
    layout = "{:17} {:30} {:7} {:7} {:>6} {:>6} {:>6}  {}"
    print(layout.format("implementation", "device", "threads", "set", "first", "epoch", "whole", "SHA-256 of W, b"))
    reference: dict[str, Any] = {}
    bad = False

    def show(name: str, device: str, threads: str, instruction_set: str, result: dict[str, Any]) -> None:
        nonlocal bad
        seconds = [f"{result[column]:.2f}" if result.get(column) else "-" for column in ("first", "steady", "wall")]
        said, is_bad = verdict(result, reference)
        bad |= is_bad
        print(layout.format(name, result.get("place", device), threads, instruction_set, *seconds, said), flush=True)

    for row in rows():
        result = run(row, hyper.epochs)
        reference = reference or (result if "sha256" in result else {})
        show(IMPLEMENTATIONS[row.implementation], row.device, row.threads, row.instruction_set, result)
    for result in proofs():
        show(result.get("implementation", "proof without GPU"), "-", "-", "-", result)

    if reference and hyper == committed:
        recorded = reference["md5"] == recorded_md5()
        bad |= not recorded
        print(f"\nThe model is {'' if recorded else 'NOT '}the one that dvc.lock records: {reference['sha256']}")
    if bad or not reference:
        sys.exit("verify: expected the same model in every row and every assumption to hold: see the table")
    print("Every row that ran gives the same model, and every assumption holds.")


if __name__ == "__main__":
    main()
