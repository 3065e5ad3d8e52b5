"""Several processes, on one host or on many, that train one model in JAX: how they find each other, and how they end.

They are started as JAX programs are, each with the same command and the same params.yaml, code and data:

    JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=3 JAX_PROCESS_ID=0 python -m stages.train ...

with 0, 1 and 2 as process ids, 0 on the named host; or by Slurm's ``srun`` or Open MPI's ``mpirun``, whose variables
JAX reads itself. Their devices form one mesh (``devices.py``). Only the first process publishes. If one is lost, or
comes late, none publishes and all end.
"""

import hashlib
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.command import UserError, at_start, out_of_memory
from stages.runtime.native_stderr import held_back

ARRIVAL = 120
"""Seconds that a process waits for the others to start."""
HEARTBEAT = 20
"""Seconds after which a process that gives no sign of life counts as lost; one that is killed is missed at once."""
LOST = (
    "train: one of {} processes was lost, cannot be reached or did not come within {} s{}: nothing was published: "
    "start all of them again\n"
)


def started() -> tuple[str, int]:
    """Return how many processes share this run, and the variable that says so.

    Raises:
        UserError: A variable is no whole number.
    """
    for name in ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if name in os.environ:
            return name, from_environment(name)
    return "", 1


def single_process() -> bool:
    """Return whether this process trains alone."""
    return started()[1] == 1


def from_environment(name: str) -> int:
    """Read a whole number from the environment."""
    text = os.environ.get(name)
    if text is None or not text.isdecimal():
        raise UserError(f"{name}: expected a whole number, found {text!r} in the environment")
    return int(text)


@contextmanager
def initialize(framework: str) -> Iterator[None]:
    """Join the processes of this run for the body, before JAX starts.

    A process that is lost, or does not come, ends this one with one line and an exit code that is not 0: at once where
    a collective notices, else after ``HEARTBEAT`` or ``ARRIVAL`` seconds, by JAX's coordination service. At the end of
    the body each waits for the others.

    Raises:
        UserError: The variables are incomplete, the framework is not JAX, this host's name is no address of its own,
            or there is no way to process 0.
    """
    variable, count = started()
    if count == 1:
        yield
        return
    if framework != "jax":
        raise UserError(f"{variable}: expected 1 process with {framework}, found {count}: set runtime.framework to jax")
    settings: dict[str, Any] = {}
    if variable == "JAX_NUM_PROCESSES":
        settings = {"num_processes": count, "process_id": from_environment("JAX_PROCESS_ID")}
        if settings["process_id"] >= count:
            raise UserError(f"JAX_PROCESS_ID: expected 0 to {count - 1}, found {settings['process_id']}")
        check_address(os.environ.get("JAX_COORDINATOR_ADDRESS", "nothing"), settings["process_id"] == 0)
    check_own_name()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # Python's messages are not held back
    try:
        with held_back(LOST.format(count, ARRIVAL, "")):
            import jax

            logging.getLogger("jax").setLevel(logging.CRITICAL)  # a plugin that finds no CUDA logs its traceback
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            try:
                jax.distributed.initialize(
                    initialization_timeout=ARRIVAL,
                    heartbeat_timeout_seconds=HEARTBEAT,
                    shutdown_timeout_seconds=HEARTBEAT,
                    **settings,
                )
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"expected to join {count} processes ({variable}): {' '.join(str(error).split()):.200}"
                ) from None
            try:
                yield
                jax.distributed.shutdown()
            except jax.errors.JaxRuntimeError as error:
                if out_of_memory(error):
                    raise
                os.write(2, LOST.format(count, ARRIVAL, f" ({' '.join(str(error).split()):.200})").encode())
                os._exit(1)  # an orderly end would wait for the process that is gone
    except Exception:  # JAX's end waits for the others, and says at length if they do not come: this error is the cause
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        raise


def check_address(address: str, of_this_process: bool) -> None:
    """Raise ``UserError`` unless ``address`` is a host and a port, which is free if this process is to listen there.

    JAX ends with a segmentation fault where it is not.
    """
    found = re.fullmatch(r".+:(\d+)", address)
    if not found:
        raise UserError(f"JAX_COORDINATOR_ADDRESS: expected host:port of process 0, found {address} in the environment")
    try:
        if of_this_process:
            socket.create_server(("", int(found[1]))).close()
    except (OSError, OverflowError):
        raise UserError(f"JAX_COORDINATOR_ADDRESS: expected a free port on this host, found {found[1]} taken") from None


def check_own_name() -> None:
    """Raise ``UserError`` unless this host's name is an address of its own: the other processes are given it."""
    name = socket.gethostname()
    with suppress(OSError):
        for family, *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family) as server:
                server.bind(address)
                return
    raise UserError(
        f"expected this host's name, {name}, to be an address of its own that the other hosts can reach, found none: "
        "give it one in /etc/hosts"
    )


def is_coordinator() -> bool:
    """Return whether this process is the one that publishes."""
    if single_process():
        return True
    import jax

    return jax.process_index() == 0


def check_same_start(*arrays: NDArray[Any]) -> None:
    """Raise ``UserError`` in all processes if one has other parameters, code or data than the first."""
    if single_process():
        return
    import jax

    sha256 = hashlib.sha256()
    for path, state in sorted(at_start.items()):
        if path.suffix in (".py", ".yaml"):
            sha256.update(f"{path.name} {state}\n".encode())
    for array in arrays:
        sha256.update(array.tobytes())
    mine = np.frombuffer(sha256.digest(), np.uint8)[None]
    mesh = jax.sharding.get_mesh()
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("examples",), ()))
    each = jax.make_array_from_callback((mesh.size, 32), split, lambda index: mine)  # one row a device
    digests = np.asarray(jax.jit(lambda rows: rows, out_shardings=whole)(each))
    others = [
        device.process_index for device, row in zip(mesh.devices, digests, strict=True) if (row != digests[0]).any()
    ]
    if others:
        raise UserError(
            f"process {min(others)} has another params.yaml, stages/ or data/resized than process 0: "
            "make them the same and start all processes again"
        )
