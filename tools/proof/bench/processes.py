"""Commands and parts of the benchmark in processes of their own: wall time, output, memory."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stages.core.command import UserError

ROOT = Path(__file__).resolve().parents[3]


def spawn(*words: str, cwd: Path | None = None, **environment: str) -> tuple[float, str]:
    """Run a command; return its wall time in seconds and its stdout; raise ``UserError`` if it fails."""
    start = time.perf_counter()
    done = subprocess.run(words, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        ours = reason.startswith("bench: ")  # the line of a worker
        raise UserError(reason[7:] if ours else f"expected {words[:4]} to succeed, found: {reason}")
    return seconds, done.stdout


def spawn_work(*arguments: Any, cwd: Path | None = None, **environment: str) -> tuple[float, Any]:
    """Call the ``work`` of a part in a process; return its wall time in seconds and its result.

    Args:
        arguments: The name of the part, and what ``work`` is given.
        cwd: The folder of the process.
        environment: Variables for the process.
    """
    words = [sys.executable, "-m", "tools.proof.bench", "--work", json.dumps(arguments)]
    seconds, output = spawn(*words, cwd=cwd, PYTHONPATH=str(ROOT), **environment)
    return seconds, json.loads(output.splitlines()[-1])


def peak_megabytes(status: str) -> float:
    """Return the most memory that a process has had resident, in 10^6 bytes, from its ``/proc/PID/status``.

    ``getrusage`` would also count what the parent held when it started the process.
    """
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024 / 1e6
