"""Which framework on which device: the choice of ``runtime`` in params.yaml, made before a framework starts.

It can change the time a run takes, never its bytes. ``auto`` takes a GPU that can do float64, else the CPU, and says
which; ``gpu`` without one is an error, never a silent CPU run; ``cpu`` ignores the GPUs. JAX can split each minibatch
among several devices: GPUs, or parts of the CPU, of this process and of the others that ``distributed.py`` initialized.
They are JAX's mesh. A single device has none, and nothing is split.
"""

import gc
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from stages.core.command import UserError
from stages.core.startup import importing
from stages.runtime.distributed import single_process
from stages.runtime.driver import (
    ask_driver,
    check_processor,
    cuda_folders,
    driver_gpus,
    load_libraries_out_of_reach,
)
from stages.runtime.native_stderr import held_back


def start(framework: str, device: str, devices: int | str = 1) -> str:
    """Start a framework on a device, or on several, and return both in words, such as ``jax on CPU``.

    Args:
        framework: ``tensorflow`` or ``jax``.
        device: ``auto``, ``cpu`` or ``gpu``.
        devices: How many of them in this process, or ``all``: every GPU, or the CPU as one.

    Raises:
        UserError: The framework is not installed or cannot run on this processor, or there are fewer devices than were
            asked for.
    """
    check_processor(framework)
    try:
        # What several processes write is held back as a whole.
        with garbage_uncollected(), importing(), held_back() if single_process() else nullcontext():
            place = FRAMEWORKS[framework](device, devices)
    except ModuleNotFoundError as error:
        raise UserError(
            f"expected {framework} in {sys.executable}, found no module {error.name}: "
            "run `make repro`, or put the absolute path of .venv/bin first on PATH"
        ) from None
    return f"{framework} on {place}"


def import_tensorflow(device: str) -> Any:
    """Import TensorFlow such that it finds CUDA's libraries, if it may take a GPU, and return the module."""
    # TensorFlow imports Keras unless it is set to use its predecessor, which is not installed: two seconds for nothing.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    if device != "cpu" and driver_gpus() and (package := importlib.util.find_spec("tensorflow")):
        for library in Path(package.origin or "").parent.glob("libtensorflow_framework.so.*"):
            load_libraries_out_of_reach(library)
    with hidden("jax"):  # which TensorFlow Lite's converter imports if it can: half a second, 100 MB
        import tensorflow

    return tensorflow


def start_tensorflow(device: str, devices: int | str) -> str:
    """Start TensorFlow and say on what."""
    tf = import_tensorflow(device)
    found = tf.config.list_physical_devices("GPU") if device != "cpu" else []
    details = {gpu: tf.config.experimental.get_device_details(gpu) for gpu in found}
    names = [details[gpu].get("device_name", gpu.name) for gpu in found]
    # NVIDIA's and AMD's can do float64; a pluggable one, such as Apple's, cannot.
    usable = [gpu for gpu in found if "compute_capability" in details[gpu] or tf.test.is_built_with_rocm()]
    gpus = choose(device, devices, usable)
    if len(gpus) > 1 or devices not in (1, "all"):
        # tf.distribute wants its loop over minibatches outside of what XLA compiles.
        raise UserError(
            f"runtime.devices: expected 1 with tensorflow, which cannot share a compiled epoch, got {devices}: "
            "set it to 1, or runtime.framework to jax"
        )
    refusal = ""
    if gpus:
        tf.config.set_visible_devices([gpus[0]], "GPU")
        tf.config.experimental.set_memory_growth(gpus[0], True)  # memory as needed, so that others find some
        try:
            tf.zeros(())  # starts the devices, whose greetings are held back here
            return f"GPU: {details[gpus[0]].get('device_name', gpus[0].name)}"
        except tf.errors.OpError as error:
            refusal, names = first_line(error), []
    place = cpu_and_why("tensorflow", device, names, refusal)
    tf.config.set_visible_devices([], "GPU")
    tf.zeros(())
    return place


def start_jax(device: str, devices: int | str) -> str:
    """Start JAX and say on what."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # memory as needed, so that others find some
    import jax

    setting = next((f"{name}={os.environ[name]}" for name in JAX_CHOICES if os.environ.get(name)), "")
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if devices not in (1, "all"):
        jax.config.update("jax_num_cpu_devices", devices)
    refusal = f"{setting} in the environment leaves it out" if setting else ""
    try:
        local = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # a backend does not start; there is none at all
        if setting:
            raise UserError(
                f"expected a platform that JAX can start, got {setting} in the environment: unset it, "
                f"as runtime.device in params.yaml chooses {first_line(error) and f'({first_line(error)})'}".strip()
            ) from None
        refusal = first_line(error)
        jax.config.update("jax_platforms", "cpu")
        local = jax.local_devices()
    # An NVIDIA or AMD backend is called "gpu", and both can do float64; any other accelerator goes by its own name.
    accelerators = [accelerator for accelerator in local if accelerator.platform != "cpu"]
    usable = [accelerator for accelerator in accelerators if accelerator.platform == "gpu"]
    gpus = choose(device, devices, usable)
    if gpus:
        place, kind = f"GPU: {gpus[0].device_kind}", "gpu"
    else:
        place = cpu_and_why("jax", device, [accelerator.device_kind for accelerator in accelerators], refusal)
        kind = "cpu"
    count = None if devices == "all" else devices
    by_process = [jax.local_devices(process, kind)[:count] for process in range(jax.process_count())]
    jax.config.update("jax_default_device", by_process[jax.process_index()][0])
    mesh = [each for chosen in by_process for each in chosen]
    if len(mesh) == 1:
        return place
    jax.set_mesh(jax.sharding.Mesh(mesh, ("examples",)))
    return f"{place}, {len(mesh)} devices" + (f" of {len(by_process)} processes" if len(by_process) > 1 else "")


FRAMEWORKS = {"tensorflow": start_tensorflow, "jax": start_jax}
JAX_CHOICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_XLA_BACKEND")
"""The variables by which JAX itself is given a device."""
PROBES = {
    "tensorflow": "from stages.runtime import devices as d; d.import_tensorflow('gpu').config.list_physical_devices()",
    "jax": "import jax; jax.local_devices()",
}
"""What makes a framework look for GPUs and no more."""
PROBE_VARIABLES = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "dso_loader=1"}
"""The environment in which it writes which CUDA libraries it opens."""


def choose(device: str, devices: int | str, usable: Sequence[Any]) -> Sequence[Any]:
    """Return the GPUs to use, none for the CPU.

    Args:
        device: ``auto``, ``cpu`` or ``gpu``.
        devices: How many, or ``all``.
        usable: The framework's handles of GPUs that can do float64.

    Raises:
        UserError: Some are usable, but fewer than ``devices``.
    """
    if device == "cpu" or not usable:
        return []
    count = len(usable) if devices == "all" else int(devices)
    if count > len(usable):
        gpus = f"{len(usable)} {'GPUs' if len(usable) > 1 else 'GPU'} that can do float64"
        raise UserError(f"runtime.devices: expected up to {gpus}, got {devices}: lower it or set runtime.device to cpu")
    return usable[:count]


def cpu_and_why(framework: str, device: str, found: Sequence[str], refusal: str) -> str:
    """Name the CPU, and what keeps an automatic choice from a GPU that the driver sees.

    Args:
        framework: ``tensorflow`` or ``jax``.
        device: ``auto``, ``cpu`` or ``gpu``.
        found: The names of all accelerators that the framework offers, none of which can do float64.
        refusal: What the framework said against a GPU, if it did.

    Raises:
        UserError: ``gpu`` was asked for; the message says what was found.
    """
    if device == "cpu":
        return "CPU"
    count, problem = ask_driver()
    if found:
        problem = f"{', '.join(found)}, which cannot do float64: use another"
    elif count and not cuda_folders():
        problem = f"{count} on the NVIDIA driver but no CUDA packages: `make repro EXTRAS=gpu` installs them"
    elif count:
        reason = refusal or ask_for_refusal(framework)
        problem = f"{count} on the NVIDIA driver, which {framework} refuses ({reason}): fix that"
    if device == "gpu":
        raise UserError(
            f"runtime.device: expected a GPU that can do float64, found {problem}, or set runtime.device to auto or cpu"
        )
    return f"CPU (found {problem})" if count else "CPU"


def ask_for_refusal(framework: str) -> str:
    """Have another process look for GPUs, and return in its framework's words why it takes none."""
    command = [sys.executable, "-c", PROBES[framework]]
    said = subprocess.run(command, env=os.environ | PROBE_VARIABLES, stderr=subprocess.PIPE, text=True).stderr
    if missing := re.findall(r"Could not load dynamic library '(.+?)'", said):
        return f"it cannot open {', '.join(dict.fromkeys(missing))}"
    reasons = re.findall(r"^(?:\S*Error: |W\d+ .*?\] |WARNING:.*?:\d+: )(.+)", said, re.MULTILINE)
    return reasons[0] if reasons else "without a word"


def first_line(error: Exception) -> str:
    """Return the first line of a framework's message."""
    return f"{error}".strip().partition("\n")[0]


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Let imports in the body that can do without ``package`` do so, unless it is there already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # the import system then finds none
    try:
        yield
    finally:
        del sys.modules[package]


@contextmanager
def garbage_uncollected() -> Iterator[None]:
    """Leave what the body makes out of garbage collection, then and later: a framework's modules stay.

    To look for garbage among them takes a fifth of TensorFlow's import, and a tenth of a second when it first compiles.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
