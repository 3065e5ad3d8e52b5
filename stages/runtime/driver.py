"""What both frameworks need of the machine, asked without them: the processor, NVIDIA's driver and CUDA's libraries."""

import ctypes
import importlib.util
import mmap
import platform
import re
from contextlib import suppress
from pathlib import Path

from stages.core.command import UserError

NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def check_processor(framework: str) -> None:
    """Raise ``UserError`` on an x86-64 processor without AVX: importing either framework would end in SIGILL."""
    with suppress(OSError), Path("/proc/cpuinfo").open() as file:
        flags = next((line.split() for line in file if line.startswith("flags")), None)
        if platform.machine() == "x86_64" and flags and "avx" not in flags:
            raise UserError(
                f"expected a processor with AVX, which {framework} is built for, found one without: change it"
            )


def driver_gpus() -> int | None:
    """Return how many GPUs NVIDIA's driver offers, or None without a driver."""
    return ask_driver()[0]


def ask_driver() -> tuple[int | None, str]:
    """Return how many GPUs NVIDIA's driver offers, None without a driver; and if there are none, why."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return None, f"no NVIDIA driver ({error}): install it"
    count, text = ctypes.c_int(0), ctypes.c_char_p()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, NO_DEVICE):
        driver.cuGetErrorString(status, ctypes.byref(text))
        says = (text.value or b"no text").decode(errors="replace")
        return 0, f"an NVIDIA driver that does not start (error {status}: {says}): check nvidia-smi"
    if not count.value:
        return 0, "an NVIDIA driver that sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return count.value, ""


def cuda_folders() -> list[Path]:
    """Return the folders of the installed CUDA packages that hold libraries."""
    package = importlib.util.find_spec("nvidia")
    places = (package.submodule_search_locations if package else None) or []
    return sorted({library.parent for place in places for library in Path(place).glob("*/lib/lib*.so*")})


def load_libraries_out_of_reach(library: Path) -> None:
    """Load the CUDA libraries that ``library`` does not find when it asks for them by name: then it does.

    The search path of TensorFlow 2.21's wheel lacks the folder of cuSOLVER, without which it takes no GPU.
    """
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(b"$ORIGIN/../../nvidia/")
        search_path = content[start : content.find(b"\0", start)].decode() if start >= 0 else ""
    for folder in cuda_folders():
        if f"/nvidia/{folder.parent.name}/lib" not in search_path:
            for each in sorted(folder.iterdir()):
                if re.fullmatch(r"lib[A-Za-z]+\.so\.\d+", each.name):
                    with suppress(OSError):  # the framework will say which it misses
                        ctypes.CDLL(str(each))
