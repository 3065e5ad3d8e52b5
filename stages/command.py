"""A stage as a command: its paths, its exit code, its one-line errors."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """A fault that the user can mend. The message is one line: what was expected, what was found, what to do."""


def run(stage: Callable[..., None]) -> None:
    """Call ``stage`` with the paths on the command line, inputs first, outputs last.

    A ``UserError``, an error of the operating system or a lack of memory ends the process with one line on stderr and
    exit code 1, an interrupt with exit code 130. Anything else is a defect of ours and keeps its traceback.
    """
    verb = Path(sys.argv[0]).stem
    wanted = list(inspect.signature(stage).parameters)
    if len(sys.argv) - 1 != len(wanted):
        usage = " ".join(name.upper() for name in wanted)
        sys.exit(f"{verb}: expected {len(wanted)} paths, got {len(sys.argv) - 1}: python -m stages.{verb} {usage}")
    try:
        stage(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(f"{verb}: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"{verb}: {where}{error.strerror or error}")
    except Exception as error:
        if not out_of_memory(error):
            raise
        sys.exit(
            f"{verb}: out of memory ({str(error).splitlines()[0]}): free some, "
            "lower train.batch_size or the size in resize in params.yaml, or set runtime.device to cpu"
        )
    except KeyboardInterrupt:
        print(f"{verb}: interrupted; nothing was published", file=sys.stderr)
        sys.exit(130)


def out_of_memory(error: Exception) -> bool:
    """Tell whether Python, TensorFlow or JAX ran out of memory, without importing the frameworks."""
    tensorflow, jax = type(error).__name__ == "ResourceExhaustedError", str(error).startswith("RESOURCE_EXHAUSTED")
    return isinstance(error, MemoryError) or tensorflow or jax
