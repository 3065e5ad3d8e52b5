"""A stage as a command: its paths, its exit code, its one-line errors, and when its results may be published."""

import ctypes
import gc
import hashlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from stages.core.startup import after_imports
from stages.core.way_back import way_back

STAGES = Path(__file__).parents[1]
PARAMS = Path("params.yaml")
PARENT = os.getppid()

# Without a home directory matplotlib works all the same, but remarks on it.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

at_start: dict[Path, str] = {}
"""What this process must find again before it publishes: inputs, parameters and modules, each with its state."""


class UserError(Exception):
    """An error that the user can fix. The message is one line: what was expected, what was found, what to do."""


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
        if callable(signal.getsignal(signal.SIGINT)):  # else a shell has it ignored
            signal.signal(signal.SIGINT, after_imports)
        end_with_dvc()
        paths = [Path(argument) for argument in sys.argv[1:]]
        at_start.update({path: state(path) for path in (*paths, PARAMS, *STAGES.rglob("*.py")) if path.exists()})
        stage(*paths)
    except UserError as error:
        sys.exit(f"{verb}: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(with_way_back(f"{verb}: {where}{error.strerror or error}: fix that and run `dvc repro`"))
    except Exception as error:
        if not out_of_memory(error):
            raise
        line = (
            f"{verb}: out of memory ({str(error).splitlines()[0] if str(error) else 'of the host'}): free some, "
            f"lower train.batch_size or the size in resize in params.yaml, or set runtime.device to cpu"
        )
        sys.exit(with_way_back(line))
    except KeyboardInterrupt:
        print(f"{verb}: interrupted: run `dvc repro` to go on", file=sys.stderr)
        sys.exit(130)
    finally:
        at_start.clear()
        gc.freeze()  # Python would look through all objects at exit: a tenth of a second, for matplotlib's


def with_way_back(line: str) -> str:
    """Add to the line of a failure how to go back, where that can work."""
    return "; ".join(filter(None, [line, way_back()]))


def out_of_memory(error: Exception) -> bool:
    """Return whether Python, TensorFlow or JAX ran out of memory, without importing the frameworks."""
    tensorflow, jax = type(error).__name__ == "ResourceExhaustedError", str(error).startswith("RESOURCE_EXHAUSTED")
    return isinstance(error, MemoryError) or tensorflow or jax


def end_with_dvc() -> None:
    """Have the kernel kill this stage when its dvc dies, as a killed dvc leaves its stage running.

    The stage would later overwrite the results of the next run. dvc.yaml starts it with ``exec``, so that dvc is its
    parent whatever the shell.

    Raises:
        UserError: It died before the kernel could be asked.
    """
    if "DVC_STAGE" in os.environ and sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        check_dvc_is_there()


def check_dvc_is_there() -> None:
    """Raise ``UserError`` if dvc started this stage but is gone: its orphan has another parent, as a rule init."""
    if "DVC_STAGE" in os.environ:
        parent = Path(f"/proc/{PARENT}/cmdline")  # of Linux; dvc may be a program of its own or run in a Python
        is_dvc = not parent.exists() or any(name in parent.read_bytes() for name in (b"dvc", b"python"))
        if os.getppid() != PARENT or not is_dvc:
            raise UserError("the dvc that started this stage is gone: nothing was published: run `dvc repro`")


def state(path: Path) -> str:
    """Return what changes when a file changes: a text's content, a data file's or folder's size and time."""
    if path.suffix in (".py", ".yaml"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    entries = [(file.name, file.stat()) for file in files if file.suffix != ".tmp"]  # our own, on their way out
    return str([(name, status.st_size, status.st_mtime_ns) for name, status in entries])


def check_unchanged() -> None:
    """Raise ``UserError`` if what this process started from is no longer what is there, or if its dvc is gone.

    DVC hashes dependencies after the command has ended (treeverse/dvc#11058), so it would record a file that was edited
    meanwhile as the source of results that do not come from it.
    """
    check_dvc_is_there()
    loaded = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    for path, before in at_start.items():
        if STAGES in path.parents and path not in loaded:
            continue  # a module of another stage or framework
        if not path.exists() or state(path) != before:
            shown = os.path.relpath(path)
            raise UserError(f"{shown} changed while the stage ran: nothing was published: run `dvc repro` again")
