"""What is asked of the machine before a framework starts; the driver is a stand-in."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.command import UserError
from stages.runtime import devices, driver
from tools.proof.cuda_libraries import compile_stand_in


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler for the stand-in driver")
def test_the_driver_is_asked_for_its_gpus_and_its_error(tmp_path: Path) -> None:
    stand_in = os.environ | compile_stand_in(tmp_path)
    script = "from stages.runtime.driver import ask_driver; print(ask_driver())"
    cases = {
        (("STAND_IN_GPUS", "2"),): (2, ""),
        (("STAND_IN_GPUS", "0"),): (
            0,
            "an NVIDIA driver that sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES",
        ),
        (("STAND_IN_ERROR", "803"),): (
            0,
            "an NVIDIA driver that does not start (error 803: as the stand-in was set): check nvidia-smi",
        ),
    }
    for variables, expected in cases.items():
        done = subprocess.run(
            [sys.executable, "-c", script], env=stand_in | dict(variables), capture_output=True, text=True
        )
        assert done.stdout == f"{expected}\n"


@pytest.mark.parametrize(
    ("machine", "flags", "refused"),
    [("x86_64", "fpu sse4_2", True), ("x86_64", "fpu sse4_2 avx", False), ("aarch64", "fp asimd", False)],
)
def test_a_processor_without_avx_is_refused_before_the_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, flags: str, refused: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(driver, "Path", lambda path: cpuinfo)
    monkeypatch.setitem(devices.FRAMEWORKS, "tensorflow", lambda device, devices: "CPU")

    if refused:
        with pytest.raises(UserError, match="expected a processor with AVX, which tensorflow is built for, found one"):
            devices.start("tensorflow", "cpu")
    else:
        assert devices.start("tensorflow", "cpu") == "tensorflow on CPU"


@pytest.mark.parametrize(
    ("search_path", "loaded"),
    [
        (b"$ORIGIN/../../nvidia/cublas/lib:$ORIGIN/../nvidia/cublas/lib", ["libcusolver.so.11", "libcusolverMg.so.11"]),
        (b"$ORIGIN/../../nvidia/cublas/lib:$ORIGIN/../../nvidia/cusolver/lib", []),
        (b"", ["libcublas.so.12", "libcusolver.so.11", "libcusolverMg.so.11"]),
    ],
)
def test_libraries_out_of_a_wheel_s_reach_are_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, search_path: bytes, loaded: list[str]
) -> None:
    wheel = tmp_path / "libtensorflow_framework.so.2"
    wheel.write_bytes(b"ELF\0" + search_path + b"\0/nvidia/cusolver/lib")
    for name in ("cublas/lib/libcublas.so.12", "cusolver/lib/libcusolver.so.11", "cusolver/lib/libcusolverMg.so.11"):
        (tmp_path / "nvidia" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvidia" / name).touch()
    for name in ("cublas/lib/libcublas.alt.so.12", "cusolver/lib/libcusolver_static.a", "nvcc/bin/ptxas"):
        (tmp_path / "nvidia" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvidia" / name).touch()
    (tmp_path / "nvidia/__init__.py").touch()  # as the package of an environment with CUDA's has
    calls: list[str] = []
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ctypes, "CDLL", calls.append)
    driver.load_libraries_out_of_reach(wheel)

    assert [Path(call).name for call in calls] == loaded
