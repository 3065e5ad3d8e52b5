"""Which framework on which device: the choice of ``runtime`` in params.yaml, made before a framework starts.

It can change the time a run takes, never its bytes. ``auto`` takes a GPU that can do float64, else the CPU, and says
which; ``gpu`` without one is an error, never a silent CPU run; ``cpu`` leaves the GPUs alone. JAX can share each
minibatch among several: that many GPUs, or that many parts of the CPU, of this process and of the others that
``distributed.py`` has joined. They are JAX's mesh; without one, as on a single device, nothing is shared.
"""

import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from stages.core.command import UserError
from stages.runtime.distributed import is_alone


def start(framework: str, device: str, devices: int | str = 1) -> str:
    """Start a framework on a device, or on several, and return both in words, such as ``jax on CPU``.

    Args:
        framework: ``tensorflow`` or ``jax``.
        device: ``auto``, ``cpu`` or ``gpu``.
        devices: How many of them in this process, or ``all``: every GPU, or the CPU as one.

    Raises:
        UserError: The framework is not installed, or there are fewer devices than were asked for.
    """
    try:
        # The noise of several processes is relayed.
        with garbage_uncollected(), start_up_noise_held_back() if is_alone() else nullcontext():
            place = FRAMEWORKS[framework](device, devices)
    except ModuleNotFoundError as error:
        raise UserError(
            f"expected {framework} in {sys.executable}, found no module {error.name}: "
            "run `make repro`, or put the absolute path of .venv/bin first on PATH"
        ) from None
    return f"{framework} on {place}"


def start_tensorflow(device: str, devices: int | str) -> str:
    """Start TensorFlow and say on what."""
    # TensorFlow imports Keras unless told to use its predecessor, which is not installed: two seconds for nothing.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    with hidden("jax"):  # which TensorFlow Lite's converter imports if it can: half a second, 100 MB
        import tensorflow as tf

    found = tf.config.list_physical_devices("GPU") if device != "cpu" else []
    details = {gpu: tf.config.experimental.get_device_details(gpu) for gpu in found}
    # NVIDIA's and AMD's can do float64; a pluggable one, such as Apple's, cannot.
    usable = [gpu for gpu in found if "compute_capability" in details[gpu] or tf.test.is_built_with_rocm()]
    gpus = choose(device, devices, usable, [details[gpu].get("device_name", gpu.name) for gpu in found])
    if len(gpus) > 1 or devices not in (1, "all"):
        # tf.distribute wants its loop over minibatches outside of what XLA compiles.
        raise UserError(
            f"runtime.devices: expected 1 with tensorflow, which cannot share a compiled epoch, got {devices}: "
            "set it to 1, or runtime.framework to jax"
        )
    gpu = gpus[0] if gpus else None
    tf.config.set_visible_devices([gpu] if gpu else [], "GPU")
    if gpu:
        tf.config.experimental.set_memory_growth(gpu, True)  # memory as needed, so that others find some
    tf.zeros(())  # starts the devices, whose greetings are held back here
    return f"GPU: {details[gpu].get('device_name', gpu.name)}" if gpu else cpu_and_why(device)


def start_jax(device: str, devices: int | str) -> str:
    """Start JAX and say on what."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # memory as needed, so that others find some
    import jax

    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if devices not in (1, "all"):
        jax.config.update("jax_num_cpu_devices", devices)
    # An NVIDIA or AMD backend is called "gpu", and both can do float64; any other accelerator goes by its own name.
    accelerators = [accelerator for accelerator in jax.local_devices() if accelerator.platform != "cpu"]
    usable = [accelerator for accelerator in accelerators if accelerator.platform == "gpu"]
    gpus = choose(device, devices, usable, [accelerator.device_kind for accelerator in accelerators])
    place, kind = (f"GPU: {gpus[0].device_kind}", "gpu") if gpus else (cpu_and_why(device), "cpu")
    count = None if devices == "all" else devices
    shares = [jax.local_devices(process, kind)[:count] for process in range(jax.process_count())]
    jax.config.update("jax_default_device", shares[jax.process_index()][0])
    mesh = [each for share in shares for each in share]
    if len(mesh) == 1:
        return place
    jax.set_mesh(jax.sharding.Mesh(mesh, ("examples",)))
    return f"{place}, {len(mesh)} devices" + (f" of {len(shares)} processes" if len(shares) > 1 else "")


FRAMEWORKS = {"tensorflow": start_tensorflow, "jax": start_jax}


def choose(device: str, devices: int | str, usable: Sequence[Any], found: Sequence[str]) -> Sequence[Any]:
    """Return the GPUs to use, none for the CPU.

    Args:
        device: ``auto``, ``cpu`` or ``gpu``.
        devices: How many, or ``all``.
        usable: The framework's handles of GPUs that can do float64.
        found: The names of all accelerators that the framework sees.

    Raises:
        UserError: ``gpu`` was asked for and none is usable, or fewer are than ``devices``; the message says what was
            found.
    """
    if device == "gpu" and not usable:
        what = f"{', '.join(found)}, which cannot do float64" if found else missing_gpu()
        raise UserError(f"runtime.device: expected a GPU that can do float64, found {what}")
    if device == "cpu" or not usable:
        return []
    count = len(usable) if devices == "all" else int(devices)
    if count > len(usable):
        gpus = f"{len(usable)} {'GPUs' if len(usable) > 1 else 'GPU'} that can do float64"
        raise UserError(f"runtime.devices: expected up to {gpus}, got {devices}: lower it or set runtime.device to cpu")
    return usable[:count]


def missing_gpu() -> str:
    """Say why a framework sees no GPU: no driver, a driver without a GPU, or a GPU without CUDA libraries."""
    cpu = "set runtime.device to auto or cpu"
    gpus = driver_gpus()
    if gpus is None:
        return f"no NVIDIA driver (libcuda.so.1): install it, or {cpu}"
    if gpus == 0:
        return f"an NVIDIA driver that sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, or {cpu}"
    return f"{gpus} on the NVIDIA driver but no CUDA libraries: `make repro EXTRAS=gpu` installs them, or {cpu}"


def cpu_and_why(device: str) -> str:
    """Name the CPU, and what keeps an automatic choice from a GPU that the driver sees."""
    return f"CPU (found {missing_gpu()})" if device == "auto" and driver_gpus() else "CPU"


def driver_gpus() -> int | None:
    """Ask NVIDIA's driver for its GPUs: their number, or None without a driver. Frameworks are not needed."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Let imports in the body that can do without ``package`` do so, unless it is there already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # so the import system is told that there is none
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


@contextmanager
def start_up_noise_held_back() -> Iterator[None]:
    """Hold back what C++ code writes to stderr, which no log level stops; give it back if the body fails."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except BaseException:
            noise.seek(0)
            os.write(stderr, noise.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
