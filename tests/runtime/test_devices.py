"""The choice of a device, with the frameworks' device lists and NVIDIA's driver replaced; and starts that fail."""

import ctypes
import gc
import importlib
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from stages.core.command import UserError
from stages.runtime import devices
from stages.runtime.devices import choose

H200 = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
TPU = SimpleNamespace(platform="tpu", device_kind="TPU v5")
CPU = SimpleNamespace(platform="cpu", device_kind="cpu")


class PhysicalDevice(NamedTuple):
    """What TensorFlow lists."""

    name: str


def run_start(framework: str, device: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start a framework in a stage of its own, with these variables."""
    script = (
        "import sys; from stages.core import command; from stages.runtime import devices; "
        "framework, device = sys.argv[1:]; del sys.argv[1:]; "
        "command.run(lambda: print(devices.start(framework, device)))"
    )
    command = [sys.executable, "-c", script, framework, device]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ | variables)


@pytest.fixture
def jax_devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes JAX see other devices, and a record of the settings it is given."""
    import jax

    settings: dict[str, Any] = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)

    def see(*devices: Any) -> dict[str, Any]:
        local = lambda process=0, kind=None: [d for d in devices if kind in (None, d.platform)]  # noqa: E731
        monkeypatch.setattr(jax, "local_devices", local)
        return settings

    return see


@pytest.fixture
def tensorflow_gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes TensorFlow see GPUs with these details, and a record of the calls it gets."""
    devices.start("tensorflow", "cpu")
    import tensorflow as tf

    calls: dict[str, Any] = {}

    def see(*details: dict[str, Any]) -> dict[str, Any]:
        gpus = [PhysicalDevice(f"GPU:{i}") for i in range(len(details))]
        by_name = {gpu.name: entry for gpu, entry in zip(gpus, details, strict=True)}
        fake = SimpleNamespace(
            list_physical_devices=lambda kind: gpus,
            set_visible_devices=lambda visible, kind: calls.__setitem__("visible", [gpu.name for gpu in visible]),
            experimental=SimpleNamespace(
                get_device_details=lambda gpu: by_name[gpu.name],
                set_memory_growth=lambda gpu, on: calls.__setitem__("growth", (gpu.name, on)),
            ),
        )
        monkeypatch.setattr(tf, "config", fake)
        return calls

    return see


def driver(monkeypatch: pytest.MonkeyPatch, gpus: int | None, status: int = 0) -> None:
    """Replace NVIDIA's driver by one that sees so many GPUs and starts with this status, or take it away."""

    def load(name: str) -> Any:
        if gpus is None:
            raise OSError(f"{name}: cannot open shared object file")

        def count(pointer: Any) -> int:
            pointer._obj.value = gpus
            return 0

        def error_string(status: int, pointer: Any) -> None:
            pointer._obj.value = b"unsupported display driver"

        return SimpleNamespace(cuInit=lambda flags: status, cuDeviceGetCount=count, cuGetErrorString=error_string)

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize(
    ("wanted", "usable", "chosen"),
    [("auto", "ab", "a"), ("auto", "", ""), ("gpu", "a", "a"), ("cpu", "a", "")],
)
def test_first_usable_gpu_is_chosen_unless_the_cpu_is_asked_for(wanted: str, usable: str, chosen: str) -> None:
    assert list(choose(wanted, 1, list(usable))) == list(chosen)


@pytest.mark.parametrize(("devices", "chosen"), [(2, "ab"), (3, "abc"), ("all", "abc")])
def test_as_many_gpus_are_chosen_as_are_asked_for(devices: int | str, chosen: str) -> None:
    assert list(choose("auto", devices, list("abc"))) == list(chosen)


@pytest.mark.parametrize(("usable", "gpus"), [("a", "1 GPU"), ("ab", "2 GPUs")])
def test_more_devices_than_gpus_are_an_error_that_counts_them(usable: str, gpus: str) -> None:
    with pytest.raises(UserError) as caught:
        choose("auto", 3, list(usable))
    assert str(caught.value) == (
        f"runtime.devices: expected up to {gpus} that can do float64, got 3: lower it or set runtime.device to cpu"
    )


@pytest.mark.parametrize(
    ("gpus", "status", "packages", "found", "refusal", "message"),
    [
        (None, 0, 0, [], "", "no NVIDIA driver (libcuda.so.1: cannot open shared object file): install it"),
        (
            1,
            803,
            0,
            [],
            "",
            "an NVIDIA driver that does not start (error 803: unsupported display driver): check nvidia",
        ),
        (0, 0, 0, [], "", "an NVIDIA driver that sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"),
        (1, 100, 0, [], "", "an NVIDIA driver that sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"),
        (1, 0, 0, [], "", "1 on the NVIDIA driver but no CUDA packages: `make repro EXTRAS=gpu` installs them"),
        (1, 0, 1, [], "INTERNAL: no", "1 on the NVIDIA driver, which jax refuses (INTERNAL: no): fix that"),
        (None, 0, 0, ["METAL"], "", "METAL, which cannot do float64: use another"),
    ],
)
def test_a_gpu_that_cannot_be_had_is_an_error_that_says_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int | None,
    status: int,
    packages: int,
    found: list[str],
    refusal: str,
    message: str,
) -> None:
    driver(monkeypatch, gpus, status)
    monkeypatch.setattr(devices, "cuda_folders", lambda: [Path("nvidia/cublas/lib")] * packages)

    with pytest.raises(UserError) as caught:
        devices.cpu_and_why("jax", "gpu", found, refusal)
    assert str(caught.value).startswith(f"runtime.device: expected a GPU that can do float64, found {message}")
    assert str(caught.value).endswith(", or set runtime.device to auto or cpu")
    seen = gpus and status == 0
    assert devices.cpu_and_why("jax", "auto", found, refusal) == (f"CPU (found {message})" if seen else "CPU")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "I0000 00:0 dso_loader.cc:133] Successfully opened dynamic library libcublas.so.12\n"
            "I0000 00:0 dso_loader.cc:144] Could not load dynamic library 'libcusolver.so.11'; dlerror: No such file\n"
            "I0000 00:0 dso_loader.cc:144] Could not load dynamic library 'libcudnn.so.9'; dlerror: No such file\n"
            "W0000 00:0 gpu_device.cc:2365] Cannot dlopen some GPU libraries.\n",
            "it cannot open libcusolver.so.11, libcudnn.so.9",
        ),
        ("Traceback (most recent call last):\nRuntimeError: Unable to load CUDA.\n", "Unable to load CUDA."),
        ("W0000 00:0 1 gpu_device.cc:2365] Ignoring visible gpu device\n", "Ignoring visible gpu device"),
        (
            "WARNING:2026-11-25 05:00:00,000:jax._src.xla_bridge:905: An NVIDIA GPU may be present\n",
            "An NVIDIA GPU may be present",
        ),
        ("", "without a word"),
    ],
)
def test_a_framework_s_refusal_is_quoted(monkeypatch: pytest.MonkeyPatch, said: str, reason: str) -> None:
    monkeypatch.setattr(devices, "PROBES", {"jax": f"import sys; sys.stderr.write({said!r})"})

    assert devices.ask_for_refusal("jax") == reason


def test_jax_takes_a_gpu_and_says_which(jax_devices: Any) -> None:
    settings = jax_devices(H200, H200, CPU)

    assert devices.start_jax("auto", 1) == "GPU: NVIDIA H200"
    assert settings["jax_default_device"] is H200
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_jax_does_not_take_an_accelerator_without_float64(jax_devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, None)
    settings = jax_devices(TPU, CPU)

    assert devices.start_jax("auto", 1) == "CPU"
    assert settings["jax_default_device"] is CPU
    with pytest.raises(UserError, match="found TPU v5, which cannot do float64"):
        devices.start_jax("gpu", 1)


def test_jax_on_the_cpu_hides_the_gpus(jax_devices: Any) -> None:
    settings = jax_devices(CPU)

    assert devices.start_jax("cpu", 1) == "CPU"
    assert settings["jax_platforms"] == "cpu"


@pytest.mark.parametrize(("wanted", "count"), [(2, 2), ("all", 3)])
def test_jax_shares_among_gpus_through_a_mesh(jax_devices: Any, wanted: int | str, count: int) -> None:
    import jax

    gpus = [SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", id=i) for i in range(3)]
    jax_devices(*gpus, CPU)
    meshes: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.sharding, "Mesh", lambda devices, axes: (list(devices), axes))
        patch.setattr(jax, "set_mesh", meshes.append)
        assert devices.start_jax("auto", wanted) == f"GPU: NVIDIA H200, {count} devices"
    assert meshes == [(gpus[:count], ("examples",))]


def test_tensorflow_says_that_jax_shares(tensorflow_gpus: Any) -> None:
    details = {"device_name": "NVIDIA H200", "compute_capability": (9, 0)}
    tensorflow_gpus(details, details)

    for wanted, count in (("auto", 2), ("auto", "all"), ("cpu", 2)):
        with pytest.raises(UserError) as caught:
            devices.start_tensorflow(wanted, count)
        assert str(caught.value) == (
            f"runtime.devices: expected 1 with tensorflow, which cannot share a compiled epoch, got {count}: "
            "set it to 1, or runtime.framework to jax"
        )


def test_tensorflow_takes_all_devices_where_that_is_one(tensorflow_gpus: Any) -> None:
    tensorflow_gpus({"device_name": "NVIDIA H200", "compute_capability": (9, 0)})

    assert devices.start_tensorflow("auto", "all") == "GPU: NVIDIA H200"
    assert devices.start_tensorflow("cpu", "all") == "CPU"


@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_backend_of_jax_that_does_not_start_leaves_the_cpu_or_is_one_line(
    jax_devices: Any, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    import jax

    driver(monkeypatch, 1)
    monkeypatch.setattr(devices, "cuda_folders", lambda: [Path("nvidia/cublas/lib")])
    settings = jax_devices(CPU)
    works = jax.local_devices

    def local_devices(*words: Any) -> Any:
        if settings.get("jax_platforms") != "cpu":
            raise RuntimeError("Unable to initialize backend 'cuda': INTERNAL: none\nand more")
        return works(*words)

    monkeypatch.setattr(jax, "local_devices", local_devices)
    why = "1 on the NVIDIA driver, which jax refuses (Unable to initialize backend 'cuda': INTERNAL: none): fix that"
    if device == "auto":
        assert devices.start_jax("auto", 1) == f"CPU (found {why})"
    else:
        with pytest.raises(UserError, match=re.escape(why)):
            devices.start_jax("gpu", 1)


@pytest.mark.parametrize(
    ("variable", "value", "device"),
    [("JAX_PLATFORMS", "cuda", "auto"), ("JAX_PLATFORM_NAME", "gpu", "cpu")],
)
def test_a_device_that_jax_is_given_and_cannot_start_is_one_line(variable: str, value: str, device: str) -> None:
    done = run_start("jax", device, **{variable: value})

    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"-c: expected a platform that JAX can start, got {variable}={value} in .*\n", done.stderr)


def test_a_cpu_that_jax_is_given_is_the_cause_that_is_named(jax_devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, 1)
    monkeypatch.setattr(devices, "cuda_folders", lambda: [Path("nvidia/cublas/lib")])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    jax_devices(CPU)

    assert "which jax refuses (JAX_PLATFORMS=cpu in the environment leaves it out)" in devices.start_jax("auto", 1)


@pytest.mark.slow  # imports a framework
def test_native_code_that_ends_the_process_has_the_last_word() -> None:
    done = run_start("jax", "cpu", XLA_FLAGS="--unknown")

    assert done.returncode != 0
    assert "Unknown flag in XLA_FLAGS: --unknown" in done.stderr


def test_tensorflow_takes_a_gpu_with_memory_as_needed(tensorflow_gpus: Any) -> None:
    details = {"device_name": "NVIDIA H200", "compute_capability": (9, 0)}
    calls = tensorflow_gpus(details, details)

    assert devices.start_tensorflow("auto", 1) == "GPU: NVIDIA H200"
    assert calls == {"visible": ["GPU:0"], "growth": ("GPU:0", True)}


def test_tensorflow_does_not_take_a_gpu_without_float64(tensorflow_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, None)
    calls = tensorflow_gpus({"device_name": "METAL"})

    assert devices.start_tensorflow("auto", 1) == "CPU"
    assert calls == {"visible": []}
    with pytest.raises(UserError, match="found METAL, which cannot do float64"):
        devices.start_tensorflow("gpu", 1)


def test_tensorflow_on_the_cpu_hides_the_gpus(tensorflow_gpus: Any) -> None:
    calls = tensorflow_gpus({"device_name": "NVIDIA H200", "compute_capability": (9, 0)})

    assert devices.start_tensorflow("cpu", 1) == "CPU"
    assert calls == {"visible": []}


def test_a_missing_framework_is_one_line_that_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(wanted: str, devices: int | str) -> str:
        raise ModuleNotFoundError("No module named 'jax'", name="jax")

    monkeypatch.setitem(devices.FRAMEWORKS, "jax", start)

    with pytest.raises(UserError) as caught:
        devices.start("jax", "auto")
    assert str(caught.value).startswith(f"expected jax in {sys.executable}, found no module jax: run `make repro`")


@pytest.mark.parametrize("error", [None, UserError("no GPU")])
def test_what_a_start_makes_is_left_out_of_garbage_collection_which_goes_on_after_it(
    monkeypatch: pytest.MonkeyPatch, error: UserError | None
) -> None:
    collecting, made = list[bool](), list[list[int]]()

    def start(wanted: str, devices: int | str) -> str:
        collecting.append(gc.isenabled())
        made.append([])
        if error:
            raise error
        return "CPU"

    monkeypatch.setitem(devices.FRAMEWORKS, "jax", start)
    with pytest.raises(UserError, match="no GPU") if error else nullcontext():
        devices.start("jax", "cpu")

    assert [*collecting, gc.isenabled()] == [False, True]
    assert gc.is_tracked(made[0])
    assert not any(each is made[0] for each in gc.get_objects())


def test_a_hidden_package_is_not_found_and_then_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with devices.hidden("wave"), pytest.raises(ModuleNotFoundError):
        importlib.import_module("wave")
    with pytest.raises(ZeroDivisionError), devices.hidden("wave"):
        _ = 1 / 0

    assert importlib.import_module("wave") is sys.modules["wave"]


def test_what_is_already_imported_is_not_hidden() -> None:
    with devices.hidden("json"):
        assert importlib.import_module("json") is sys.modules["json"]


@pytest.mark.slow  # imports TensorFlow, JAX and Keras
def test_tensorflow_starts_without_keras_and_jax_which_can_still_be_imported(environment: dict[str, str]) -> None:
    script = """if True:
        import sys
        from stages.runtime.devices import start
        start("tensorflow", "cpu")
        print(sorted({"keras", "jax"} & {name.split(".")[0] for name in sys.modules}))
        import jax
        print(jax.numpy.arange(3).sum())"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[2], env=environment, capture_output=True, text=True, check=True
    )

    assert (done.stdout.splitlines(), done.stderr) == (["[]", "3"], "")
