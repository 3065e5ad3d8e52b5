"""The machine in words: processor, GPUs, frameworks."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from stages.runtime.driver import driver_gpus


def cpuinfo(name: str) -> str:
    """Return a line of Linux's description of the first processor, or nothing on another system."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return str(found[1]) if found else ""


def processor() -> str:
    """Name the processor and the number of its CPUs."""
    return f"{cpuinfo('model name') or platform.machine()}, {os.cpu_count()} CPUs"


def gpus(*properties: str) -> list[str]:
    """Describe each NVIDIA GPU by ``nvidia-smi``'s properties of it; say just how many where that tool is missing."""
    count = driver_gpus()
    if not count:
        return []
    query = ["nvidia-smi", f"--query-gpu={','.join(properties)}", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True).stdout.splitlines() if shutil.which(query[0]) else []
    return found or [f"{count} without a name"]


def machine() -> list[str]:
    """Describe processor, frameworks and, where there is one, the NVIDIA driver and its GPUs."""
    versions = {
        package.name: package.version
        for package in importlib.metadata.distributions()
        if re.fullmatch(r"numpy|tensorflow|jax|jaxlib|nvidia-cuda-runtime.*", package.name)
    }
    return [
        f"{processor()}, {platform.system()}, Python {platform.python_version()}",
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        *gpus("name", "driver_version", "memory.total"),
    ]
