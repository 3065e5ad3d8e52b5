"""The environment of requirements-gpu.lock: a driver is all that the frameworks need besides."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.runtime.driver import cuda_folders
from tools.proof.cuda_libraries import compile_stand_in, opened

pytestmark = [
    pytest.mark.skipif(not cuda_folders(), reason="the CUDA packages are not installed: make test EXTRAS=gpu"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler for the stand-in driver"),
]


@pytest.mark.parametrize("framework", ["tensorflow", "jax"])
def test_every_library_that_a_framework_opens_is_in_the_environment(tmp_path: Path, framework: str) -> None:
    stand_in = compile_stand_in(tmp_path)
    places = opened(framework, stand_in)

    drivers = {name: str(tmp_path / name) for name in ("libcuda.so.1", "libnvidia-ml.so.1")}
    assert drivers.items() <= places.items()
    cuda = {name: place for name, place in places.items() if name not in drivers}
    assert {"libcudart", "libcublas", "libcudnn", "libcufft", "libcusparse"} <= {name.split(".")[0] for name in cuda}
    assert {Path(place).parent for place in cuda.values()} <= set(cuda_folders())


def test_tensorflow_takes_the_gpu_of_the_driver(tmp_path: Path) -> None:
    script = (
        "from stages.runtime import devices as d; print(d.import_tensorflow('gpu').config.list_physical_devices('GPU'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | compile_stand_in(tmp_path), capture_output=True, text=True
    )

    assert done.stdout.startswith("[PhysicalDevice(name='/physical_device:GPU:0'")
