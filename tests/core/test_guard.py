"""What a stage must not publish: results of code, parameters or data that changed meanwhile, or without its dvc."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., subprocess.Popen[str]]

# A stage that waits for a file named "go", then publishes. It lies in a copy of stages/, as modules of its own would.
STAGE = """
import signal, sys, time
from pathlib import Path
from stages.core.command import run
from stages.core.files import publish
from stages.model import metrics
from stages.runtime import distributed

def wait(source: Path, result: Path) -> None:
    print("started", flush=True)
    while not Path("go").exists():
        time.sleep(0.01)
    publish({result: b"new"})

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where it is ignored
    run(wait)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "requirements.lock", tmp_path / "requirements.lock")
    (tmp_path / "stages/wait.py").write_text(STAGE)
    (tmp_path / "params.yaml").write_text("runtime:\n")
    (tmp_path / "input").mkdir()
    (tmp_path / "input/data.bin").write_bytes(b"data")
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """A function that starts the stage, or a process that does, and returns when the stage waits."""
    with ExitStack() as processes:

        def start(*command: str, **environment: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                command or (sys.executable, "-m", "stages.wait", "input", "result"),
                cwd=folder,
                env={name: value for name, value in os.environ.items() if name != "DVC_STAGE"} | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.enter_context(process)
            processes.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            return process

        yield start


def end(process: subprocess.Popen[str], folder: Path) -> str:
    (folder / "go").touch()
    _, errors = process.communicate(timeout=30)
    return errors


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "# edited\n")


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("stages/wait.py", edit),
        ("stages/core/files.py", edit),
        ("stages/model/metrics.py", edit),
        ("stages/runtime/distributed.py", edit),
        ("params.yaml", edit),
        ("input/data.bin", edit),
        ("params.yaml", Path.unlink),
    ],
)
def test_nothing_is_published_if_what_a_stage_started_from_changed(
    folder: Path, start: Start, path: str, change: Callable[[Path], None]
) -> None:
    process = start()
    change(folder / path)
    errors = end(process, folder)

    named = "input" if path.startswith("input") else path
    message = f"wait: {named} changed while the stage ran: nothing was published: run `dvc repro` again\n"
    assert (process.returncode, errors) == (1, message)
    assert sorted(file.name for file in folder.glob("result*")) == []


def test_other_modules_and_times_may_change_and_outputs_are_replaced(folder: Path, start: Start) -> None:
    (folder / "result").write_bytes(b"old")
    (folder / "result.12345.tmp").write_bytes(b"half")  # what a killed stage left
    process = start()
    for path in ("stages/render.py", "stages/model/dataset.py"):
        edit(folder / path)
    for path in ("stages/wait.py", "params.yaml", "notes.txt"):
        (folder / path).touch()
    errors = end(process, folder)

    assert (process.returncode, errors) == (0, "")
    assert (folder / "result").read_bytes() == b"new"
    assert [file.name for file in folder.glob("result*")] == ["result"]


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_a_stage_dies_with_its_dvc_under_every_shell(folder: Path, start: Start, shell: str) -> None:
    # dvc runs a stage's command through the user's shell, as here.
    command = f"exec {sys.executable} -m stages.wait input result"
    dvc = f"import subprocess; subprocess.run(['{shell}', '-c', '{command}'])"
    process = start(sys.executable, "-c", dvc, DVC_STAGE="wait")
    (stage,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()

    stage.wait(timeout=10)
    (folder / "go").touch()
    time.sleep(0.1)
    assert not (folder / "result").exists()


GONE = "wait: the dvc that started this stage is gone: nothing was published: run `dvc repro`\n"
PYTHON_STAGE = f"{sys.executable} -m stages.wait input result"


def test_a_stage_of_dvc_whose_parent_is_neither_dvc_nor_python_ends_at_once(folder: Path) -> None:
    (folder / "start.sh").write_text(f"{PYTHON_STAGE}\nexit $?\n")  # a shell that stays
    environment = os.environ | {"DVC_STAGE": "wait"}
    done = subprocess.run(["sh", "start.sh"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout, done.stderr) == (1, "", GONE)
    assert list(folder.glob("result*")) == []


def test_a_stage_whose_dvc_died_before_the_stage_could_ask_to_die_with_it_ends_at_once(folder: Path) -> None:
    # In processes of its own, so that the orphan's next parent is cat and not, as it may be here, a Python.
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    probe = subprocess.run([*namespace, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(probe.stderr.strip())
    os.mkfifo(folder / "gate")
    os.mkfifo(folder / "said")
    (folder / "orphan.sh").write_text(f"read line < gate\nexec {PYTHON_STAGE} > said 2>&1\n")
    (folder / "dvc.sh").write_text("sh orphan.sh &\n")
    (folder / "init.sh").write_text("sh dvc.sh\necho > gate\nexec cat\n")
    environment = os.environ | {"DVC_STAGE": "wait"}
    with subprocess.Popen([*namespace, "sh", "init.sh"], cwd=folder, env=environment, stdin=subprocess.PIPE) as init:
        said = subprocess.run(["cat", "said"], cwd=folder, capture_output=True, text=True, timeout=60)
        assert said.stdout == GONE
        assert init.poll() is None
    assert list(folder.glob("result*")) == []


def test_a_stage_started_by_hand_outlives_its_shell(folder: Path, start: Start) -> None:
    by_hand = f"import subprocess; subprocess.run(['{sys.executable}', '-m', 'stages.wait', 'input', 'result'])"
    process = start(sys.executable, "-c", by_hand)
    (stage,) = psutil.Process(process.pid).children()
    process.kill()
    (folder / "go").touch()
    stage.wait(timeout=10)

    assert (folder / "result").read_bytes() == b"new"


def test_an_interrupted_stage_publishes_nothing_and_says_so(folder: Path, start: Start) -> None:
    process = start()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert (process.returncode, errors) == (130, "wait: interrupted: run `dvc repro` to go on\n")
    assert not (folder / "result").exists()


@pytest.mark.parametrize(
    "error", ["MemoryError()", "ResourceExhaustedError('OOM')", "RuntimeError('RESOURCE_EXHAUSTED: 9 GiB')"]
)
def test_a_lack_of_memory_is_one_line(folder: Path, error: str) -> None:
    script = f"""if True:
        from stages.core.command import run
        class ResourceExhaustedError(Exception): ...
        def wait(result): raise {error}
        run(wait)"""
    done = subprocess.run([sys.executable, "-c", script, "result"], cwd=folder, capture_output=True, text=True)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("-c: out of memory (")
    assert "set runtime.device to cpu" in done.stderr
