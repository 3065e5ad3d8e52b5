"""A stage before its imports: without settings of its libraries, and with an interrupt in one line.

Libraries read their variables when they are imported, and some end the process on a value that they do not know. So
``stages`` prepares for them before it imports any, in the process of a stage alone: a notebook keeps its settings.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LIBRARIES = (
    *("AUTOGRAPH_", "FREETYPE_", "JAX_", "MATPLOTLIB", "MPL", "NUMPY_", "PANDAS_", "PILLOW_"),
    *("PJRT_", "PROTOCOL_BUFFERS_", "TF2_", "TF_", "TPU_", "XLA_"),
)
"""How the names of variables begin that Matplotlib, FreeType, pandas, NumPy, Pillow, JAX, XLA and TensorFlow read."""
KEPT = (
    *("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),  # of stages/runtime/distributed.py
    *("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_C", "MPLCONFIGDIR"),  # where to keep files
    "XLA_PYTHON_CLIENT_MEM_FRACTION",  # how much of a GPU's memory to take
)
CUDA = "--xla_gpu_cuda_data_dir="
"""The flag of XLA's that says where CUDA is; it ends a process without a word on a flag that it does not know."""


def without_library_settings() -> None:
    """Take from the environment what the user set for libraries: ``params.yaml`` alone decides what a stage does."""
    places = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.startswith(CUDA)]
    for name in [name for name in os.environ if name.startswith(LIBRARIES) and not name.startswith(KEPT)]:
        del os.environ[name]
    if places:
        os.environ["XLA_FLAGS"] = " ".join(places)


def end_interrupted(signal_number: int, frame: FrameType | None) -> None:
    """End at once: an import can turn the exception of an interrupt into another, ignore it, or crash on it."""
    verb = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    print(f"{verb}: interrupted: run `dvc repro` to go on", file=sys.stderr, flush=True)
    os._exit(130)


def prepare() -> None:
    """Prepare the process of a stage for its imports."""
    without_library_settings()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell has it ignored
        signal.signal(signal.SIGINT, end_interrupted)


@contextmanager
def importing() -> Iterator[None]:
    """Have an interrupt end the process of a stage at once while the body imports native code."""
    before = signal.getsignal(signal.SIGINT)
    prepared = before is after_imports
    if prepared:
        signal.signal(signal.SIGINT, end_interrupted)
    try:
        yield
    finally:
        if prepared:
            signal.signal(signal.SIGINT, before)


def after_imports(signal_number: int, frame: FrameType | None) -> None:
    """Raise ``KeyboardInterrupt``: the handler of a stage that is past its imports."""
    raise KeyboardInterrupt
