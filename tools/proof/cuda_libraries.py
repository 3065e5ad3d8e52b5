"""List the CUDA libraries that each framework opens, and where each is found.

    make repro EXTRAS=gpu
    .venv/bin/python -m tools.proof.cuda_libraries

Without an NVIDIA driver a stand-in takes its place (`stand_in_driver.c`, compiled with cc). The exit code is 1 if a
library is not found.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from stages.runtime.devices import PROBE_VARIABLES, PROBES
from stages.runtime.driver import cuda_folders, driver_gpus

SHOW_MAPPED = "import atexit; atexit.register(lambda: print(open('/proc/self/maps').read())); "
# JAX looks for the driver's device files before it asks the driver.
SEE_A_GPU = "from jax._src import hardware_utils as h; h.has_visible_nvidia_gpu = lambda: True; "


def compile_stand_in(folder: Path) -> dict[str, str]:
    """Compile the stand-in driver into a folder; return the environment in which programs find it."""
    source, library = Path(__file__).with_name("stand_in_driver.c"), folder / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    shutil.copyfile(library, folder / "libnvidia-ml.so.1")
    return {"LD_LIBRARY_PATH": str(folder)}


def opened(framework: str, driver: dict[str, str]) -> dict[str, str]:
    """Start a framework; return where it found each library that it opened by name, nothing for one not found."""
    program = SHOW_MAPPED + (SEE_A_GPU if framework == "jax" else "") + PROBES[framework]
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | PROBE_VARIABLES | driver, capture_output=True, text=True
    )
    names = re.findall(
        r"(?:Successfully opened dynamic library |Could not load dynamic library ')([\w.-]+)", done.stderr
    )
    mapped = {Path(path).name: path for path in re.findall(r"\S+\.so\S*", done.stdout)}
    return {name: mapped.get(name, "") for name in dict.fromkeys(names)}


def main() -> None:
    """Print the table of each framework."""
    if not cuda_folders():
        sys.exit("cuda_libraries: expected the CUDA packages, found none: `make repro EXTRAS=gpu` installs them")
    missing = []
    with tempfile.TemporaryDirectory() as folder:
        driver = {} if driver_gpus() else compile_stand_in(Path(folder))
        for framework in PROBES:
            for name, place in opened(framework, driver).items():
                print(f"{framework:11} {name:22} {place or 'NOT FOUND'}")
                missing += [] if place else [name]
    if missing:
        sys.exit(f"cuda_libraries: expected every library to be found, missing: {', '.join(missing)}")


if __name__ == "__main__":
    main()
