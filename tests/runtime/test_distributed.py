"""Several processes that train one model, on loopback: the bytes of one, and an end for all when one is lost."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.command import UserError
from stages.runtime import distributed

ROOT = Path(__file__).resolve().parents[2]
OUTPUTS = ("data/model.npz", "metrics/train.json", "plots/history.csv")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (200, 32, 32), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 200, dtype=np.uint8)
LOST = (
    r"train: one of 3 processes was lost, cannot be reached or did not come within 60 s( \(.*\))?: nothing was "
    r"published: start all of them again\n"
)
# The stage, with less patience, and with what a collective may fail with.
SCRIPT = """
import os
import sys
from stages import train
from stages.core import command
from stages.runtime import distributed

distributed.ARRIVAL, distributed.HEARTBEAT = int(sys.argv[1]), int(sys.argv[2])
sys.argv = ["stages/train.py", *sys.argv[3:]]
if "FAILS_WITH" in os.environ:
    def fail(*_):
        import jax

        raise jax.errors.JaxRuntimeError(os.environ["FAILS_WITH"])

    train.check_same_start = fail
command.run(train.train)
"""


class Host:
    """A folder with params.yaml and data of its own, and what is started there."""

    def __init__(self, folder: Path, environment: dict[str, str], **values: object) -> None:
        self.folder, self.environment = folder, environment | {"PYTHONPATH": str(ROOT)}
        (folder / "data/resized").mkdir(parents=True)
        for split in ("train", "validation"):
            np.savez(folder / f"data/resized/{split}.npz", images=IMAGES, labels=LABELS)
        text = (ROOT / "params.yaml").read_text()
        for key, value in ({"framework": "jax", "device": "cpu", "epochs": 2, "batch_size": 64} | values).items():
            text = re.sub(rf"^(  {key}: )\S+", rf"\g<1>{value}", text, count=1, flags=re.MULTILINE)
        (folder / "params.yaml").write_text(text)

    def start(self, arrival: int = 60, heartbeat: int = 20, **variables: object) -> subprocess.Popen[str]:
        """Start the train stage with these variables in its environment."""
        command = [sys.executable, "-c", SCRIPT, str(arrival), str(heartbeat), "data/resized", *OUTPUTS]
        environment = self.environment | {name: str(value) for name, value in variables.items()}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=environment, **pipes)

    def outputs(self) -> dict[str, bytes]:
        return {path: (self.folder / path).read_bytes() for path in OUTPUTS if (self.folder / path).exists()}

    def files(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def hosts(tmp_path: Path, environment: dict[str, str]) -> Any:
    """A function that makes a number of hosts."""

    def make(count: int, **values: object) -> list[Host]:
        return [Host(tmp_path / f"host{len(list(tmp_path.iterdir()))}", environment, **values) for _ in range(count)]

    return make


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """What a test has started, and ended after it."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def jax_variables(count: int) -> list[dict[str, object]]:
    address = f"127.0.0.1:{free_port()}"
    return [{"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": i} for i in range(count)]


def slurm_variables(count: int) -> list[dict[str, object]]:
    job = next(job for job in range(os.getpid() * 7, 2**40) if is_free(61440 + job % 4096))  # JAX makes a port of it
    common = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": count}
    common |= {"SLURM_STEP_NUM_TASKS": count}
    return [common | {"SLURM_PROCID": i, "SLURM_LOCALID": i} for i in range(count)]


def open_mpi_variables(count: int) -> list[dict[str, object]]:
    job = next(job for job in range(os.getpid() * 7, 2**40) if is_free(61440 + job % 4096))
    common = {"OMPI_MCA_orte_hnp_uri": f"{job * 4096}.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": count}
    return [common | {"OMPI_COMM_WORLD_RANK": i, "OMPI_COMM_WORLD_LOCAL_RANK": i} for i in range(count)]


def is_free(port: int) -> bool:
    with socket.socket() as server:
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def ends(running: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for all; return exit codes and what they wrote to stdout and stderr."""
    texts = [process.communicate(timeout=120) for process in running]
    return [(process.returncode, *text) for process, text in zip(running, texts, strict=True)]


@pytest.fixture(scope="module")
def alone(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    host = Host(tmp_path_factory.mktemp("alone"), environment)
    ((code, _, stderr),) = ends([host.start()])
    assert (code, stderr) == (0, "")
    return host.outputs()


@pytest.mark.parametrize(
    ("variables", "count", "devices"),
    [
        (jax_variables, 2, 3),
        pytest.param(slurm_variables, 3, 1, marks=pytest.mark.slow),  # processes of JAX
        pytest.param(open_mpi_variables, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_processes_train_the_model_of_one_and_the_first_publishes(
    hosts: Any, started: list[Any], alone: dict[str, bytes], variables: Any, count: int, devices: int
) -> None:
    folders = hosts(count, devices=devices)
    before = folders[1].files()
    started += [host.start(**each) for host, each in zip(folders, variables(count), strict=True)]

    results = ends(started)
    for code, stdout, stderr in results:
        assert (code, stderr) == (0, "")
        assert stdout.startswith(f"jax on CPU, {count * devices} devices of {count} processes\n")
    assert ["train: epoch 2/2" in stdout for _, stdout, _ in results] == [True] + [False] * (count - 1)
    assert folders[0].outputs() == alone
    assert all(host.files() == before for host in folders[1:])


def train_and_strike(hosts: Any, started: list[Any], victim: int, blow: signal.Signals, **patience: int) -> list[Any]:
    """Start three processes, send one a signal after some epochs, and return how the others end."""
    folders = hosts(3, epochs=1000)
    started += [host.start(**patience, **each) for host, each in zip(folders, jax_variables(3), strict=True)]
    while "epoch 5/" not in started[0].stdout.readline():  # the others are silent, and as far
        assert started[0].poll() is None
    started[victim].send_signal(blow)
    others = ends([process for process in started if process is not started[victim]])
    assert all(host.outputs() == {} for host in folders)
    assert not [file for host in folders for file in host.files() if file.endswith(".tmp")]
    return others


TRAIN = [sys.executable, "-m", "stages.train", "data/resized", *OUTPUTS]


def start_in(pipeline: Any, command: list[str], variables: dict[str, object]) -> subprocess.Popen[str]:
    environment = pipeline.environment | {name: str(value) for name, value in variables.items()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=pipeline.root, env=environment, **pipes)


@pytest.mark.slow  # dvc and a process beside it
def test_dvc_repro_can_be_the_first_process(pipeline: Any, started: list[Any]) -> None:
    alone = pipeline.outputs()
    dvc = ["dvc", "repro", "--force", "--single-item", "train"]
    for command, variables in zip((dvc, TRAIN), jax_variables(2), strict=True):
        started.append(start_in(pipeline, command, variables))

    for code, stdout, stderr in ends(started):
        assert (code, stderr) == (0, "")
        assert "jax on CPU, 2 devices of 2 processes\n" in stdout
    assert pipeline.outputs() == alone
    assert pipeline.repro().ran == []


@pytest.mark.slow  # dvc and two processes
def test_dvc_commit_records_what_a_launcher_s_processes_trained(pipeline: Any, started: list[Any]) -> None:
    pipeline.set_parameter("train.seed", 2)
    started += [start_in(pipeline, TRAIN, variables) for variables in slurm_variables(2)]
    assert [(code, stderr) for code, _, stderr in ends(started)] == [(0, "")] * 2
    pipeline.dvc("commit", "--force", "train")

    assert pipeline.repro("--dry").ran == ["evaluate", "render"]
    recorded = pipeline.outputs()
    assert pipeline.repro("--force", "--single-item", "train").ran == ["train"]
    assert pipeline.outputs() == recorded


@pytest.mark.slow  # three processes
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_all_with_one_line_and_nothing_published(
    hosts: Any, started: list[Any], victim: int
) -> None:
    for code, _, stderr in train_and_strike(hosts, started, victim, signal.SIGKILL):
        assert code != 0
        assert re.fullmatch(LOST, stderr)


@pytest.mark.slow  # waits for a heartbeat
@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_that_hangs_ends_all_with_one_line_and_nothing_published(
    hosts: Any, started: list[Any], victim: int
) -> None:
    for code, _, stderr in train_and_strike(hosts, started, victim, signal.SIGSTOP, heartbeat=5):
        assert code != 0
        assert re.fullmatch(LOST, stderr)


@pytest.mark.slow  # waits for a heartbeat
def test_an_error_of_one_process_is_its_only_line(hosts: Any, started: list[Any]) -> None:
    folders = hosts(1) + hosts(1, device="gpu")
    started += [
        host.start(heartbeat=5, CUDA_VISIBLE_DEVICES="", **each)
        for host, each in zip(folders, jax_variables(2), strict=True)
    ]
    (first, second) = ends(started)

    assert first[0] != 0
    assert second[0] != 0
    assert re.fullmatch(LOST.replace("of 3", "of 2"), first[2])
    assert re.fullmatch(r"train: runtime\.device: expected a GPU that can do float64, found .*\n", second[2])


@pytest.mark.slow  # waits for an arrival
def test_a_process_that_does_not_come_ends_the_others_with_one_line(hosts: Any, started: list[Any]) -> None:
    folders = hosts(2)
    started += [host.start(arrival=5, **each) for host, each in zip(folders, jax_variables(3), strict=False)]

    for code, _, stderr in ends(started):
        assert code != 0
        assert re.fullmatch(LOST.replace("60 s", "5 s"), stderr)
    assert folders[0].outputs() == {}


def test_a_port_that_is_taken_is_one_line(hosts: Any, started: list[Any]) -> None:
    (host,) = hosts(1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started.append(host.start(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=2, JAX_PROCESS_ID=0))
        ((code, _, stderr),) = ends(started)

    assert code == 1
    port = address.partition(":")[2]
    assert stderr == f"train: JAX_COORDINATOR_ADDRESS: expected a free port on this host, found {port} taken\n"


@pytest.mark.parametrize("change", ["parameters", pytest.param("data", marks=pytest.mark.slow)])  # two processes
def test_processes_with_other_parameters_or_data_refuse_to_train(hosts: Any, started: list[Any], change: str) -> None:
    folders = hosts(1) + hosts(1, lr=0.2 if change == "parameters" else 0.1)
    if change == "data":
        np.savez(folders[1].folder / "data/resized/train.npz", images=IMAGES, labels=LABELS[::-1])
    started += [host.start(**each) for host, each in zip(folders, jax_variables(2), strict=True)]

    for code, _, stderr in ends(started):
        assert code == 1
        assert stderr == (
            "train: process 1 has another params.yaml, stages/ or data/resized than process 0: "
            "make them the same and start all processes again\n"
        )
    assert folders[0].outputs() == {}


@pytest.mark.slow  # two processes
def test_what_jax_says_of_a_lost_process_is_quoted(hosts: Any, started: list[Any]) -> None:
    # What gloo says between two hosts that Debian's installer has called 127.0.1.1 in /etc/hosts.
    error = "UNKNOWN: Gloo context initialization failed: timed out\nconnecting, remote=[127.0.1.1]:8100"
    for host, variables in zip(hosts(2), jax_variables(2), strict=True):
        started.append(host.start(FAILS_WITH=error, **variables))
    results = ends(started)

    answers = [stderr for _, _, stderr in results]
    assert all(re.fullmatch(LOST.replace("of 3", "of 2"), answer) for answer in answers)
    assert any("timed out connecting, remote=[127.0.1.1]:8100" in answer for answer in answers)
    assert all(code for code, _, _ in results)


def test_a_host_without_an_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in jax_variables(2)[0].items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(socket, "gethostname", lambda: "nowhere.invalid")
    expected = r"name, nowhere\.invalid, to be an address of its own .*, found none: give"
    with pytest.raises(UserError, match=expected), distributed.initialize("jax"):
        pass


@pytest.mark.parametrize(
    ("framework", "variables", "message"),
    [
        ("jax", {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES: expected a whole number, found 'two' in "),
        ("jax", {"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID: expected a whole number, found None in the environment"),
        ("jax", {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID: expected 0 to 1, found 2"),
        ("jax", {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "JAX_COORDINATOR_ADDRESS: expected host:port of "),
        (
            "tensorflow",
            {"SLURM_STEP_NUM_TASKS": "4"},
            "SLURM_STEP_NUM_TASKS: expected 1 process with tensorflow, found 4",
        ),
    ],
)
def test_a_faulty_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, framework: str, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught, distributed.initialize(framework):
        pass
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}])
def test_a_process_alone_publishes(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with distributed.initialize("tensorflow"):
        assert distributed.is_coordinator()
