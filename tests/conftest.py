"""The pipeline on a small data set, in a repository of its own.

Fixtures for all tests:

    environment   the caller's environment without the settings that could reach Git, DVC or Python, and with the
                  interpreter of the tests as ``python``, as DVC needs it
    source        the repository under test: to be read and cloned, never changed
    pipeline      a repository with the files of the working tree but 600 + 300 synthetic images and parameters of
                  its own, in which ``dvc repro`` has run once and is committed; every test gets its own
    reproduced    the one that it is a copy of: to be copied and cloned, never changed
    fresh         a clone of the repository under test, without its results, in which ``make repro`` has run on the real
                  data; what that printed is in ``fresh.log`` beside it
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
# Before a test imports Matplotlib, which reads the user's otherwise.
os.environ["MATPLOTLIBRC"] = str(Path(str(importlib.util.find_spec("matplotlib").origin)).with_name("mpl-data"))
FOREIGN = ("DVC_", "GIT_", "XDG_", "PYTHONHOME", "PYTHONPATH", "PYTHONSAFEPATH")
"""How the names of variables begin that could change what Git, DVC or Python do."""
PARAMETERS = {
    "runtime.framework": "jax",  # starts in one second, TensorFlow in five
    "runtime.device": "auto",
    "runtime.devices": 1,
    "resize.height": 32,
    "resize.width": 32,
    "train.seed": 0,
    "train.epochs": 2,
    "train.batch_size": 256,
    "train.lr": 0.1,
    "train.sigma": 0.01,
    "evaluate.batch_size": 256,
    "evaluate.batch_index": 0,
    "render.columns": 8,
}
"""Those of the small pipeline, so that a user's params.yaml cannot fail a test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the modules that have slow tests, so that no worker is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@dataclass(frozen=True)
class Reproduction:
    """What one ``dvc repro`` printed, and with it which stages it ran, took from the run cache, or left alone."""

    output: str

    @property
    def ran(self) -> list[str]:
        return re.findall(r"^Running stage '(\w+)':$", self.output, re.MULTILINE)

    @property
    def cached(self) -> list[str]:
        return re.findall(r"^Stage '(\w+)' is cached - skipping run", self.output, re.MULTILINE)

    @property
    def skipped(self) -> list[str]:
        return re.findall(r"^Stage '(\w+)' didn't change, skipping$", self.output, re.MULTILINE)


@dataclass(frozen=True)
class Repository:
    """A working tree and the environment in which commands run there."""

    root: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> str:
        """Return what a command wrote to stdout; if it fails, fail with all that it wrote."""
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def git(self, *words: str) -> str:
        return self.run("git", *words)

    def dvc(self, *words: str) -> str:
        return self.run("dvc", *words)

    def repro(self, *options: str) -> Reproduction:
        return Reproduction(self.dvc("repro", *options))

    def changed(self) -> set[str]:
        """The paths that differ from the last commit, files that it does not know included."""
        return {line[3:] for line in self.git("status", "--porcelain", "--untracked-files=all").splitlines()}

    def outputs(self) -> dict[str, str]:
        """The hash of every output, as dvc.lock has it."""
        stages = yaml.safe_load((self.root / "dvc.lock").read_text())["stages"].values()
        return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def clone(self, root: Path) -> "Repository":
        """Clone the last commit as a stranger would: what Git holds, and no DVC cache."""
        self.git("clone", "--quiet", "--no-local", ".", str(root))
        return Repository(root, self.environment)

    def copy(self, root: Path) -> "Repository":
        """Copy all of it, data and DVC's cache too."""
        return replace(self, root=shutil.copytree(self.root, root, symlinks=True))

    def append(self, path: str, line: str) -> None:
        with (self.root / path).open("a") as file:
            file.write(f"{line}\n")

    def set_parameter(self, name: str, value: object) -> None:
        """Change a value in params.yaml and nothing else."""
        section, key = name.split(".")
        path = self.root / "params.yaml"
        text, found = re.subn(rf"(?ms)(^{section}:.*?^  {key}: )[^ \n]+", rf"\g<1>{value}", path.read_text(), count=1)
        assert found, f"{name} is not in params.yaml"
        path.write_text(text)


def link_environment(root: Path) -> None:
    """Give a clone the environment of these tests."""
    (root / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        (root / ".venv" / path.name).symlink_to(path)


def small_data_set() -> dict[str, NDArray[np.uint8]]:
    """Make the four arrays: a bright block, whose place is the class, in noise that hides about one in ten.

    The validation split has two batches of 256, the second one short.
    """
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[np.uint8]] = {}
    for split, n in (("train", 600), ("t10k", 300)):
        labels = rng.integers(0, 10, n, np.uint8)
        images = rng.integers(0, 100, (n, 28, 28), np.uint8)
        for image, k in zip(images, labels, strict=True):
            image[14 * (k // 5) :, 5 * (k % 5) :][:14, :5] += 80
        arrays |= {f"{split}-images-idx3-ubyte": images, f"{split}-labels-idx1-ubyte": labels}
    return arrays


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist see."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextmanager
def first(lock: Path) -> Iterator[bool]:
    """Whether no other worker was here before; the others wait until the first is done."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield not os.fstat(file.fileno()).st_size
        file.write("done")


@pytest.fixture(scope="session")
def environment(shared: Path) -> dict[str, str]:
    home = shared / "home"
    home.mkdir(exist_ok=True)
    # The repository under test may belong to another user.
    (home / ".gitconfig").write_text("[user]\nname = Tester\nemail = tester@example.org\n[safe]\ndirectory = *\n")
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | {
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(home),
        "DVC_SYSTEM_CONFIG_DIR": str(home),
        "DVC_SITE_CACHE_DIR": str(home),
        "DVC_NO_ANALYTICS": "1",
        # Hundreds of runs compile the same few programs.
        "JAX_COMPILATION_CACHE_DIR": str(home / "jax"),
        "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


@pytest.fixture(scope="session")
def source(environment: dict[str, str]) -> Repository:
    return Repository(ROOT, environment)


@pytest.fixture(scope="session")
def reproduced(source: Repository, shared: Path) -> Repository:
    published = shared / "published"
    small = Repository(shared / "pipeline", {**source.environment, "FASHION_MNIST_DIR": str(published)})
    with first(shared / "pipeline.lock") as is_first:
        if is_first:
            published.mkdir()
            reproduce(source, small)
    return small


def reproduce(source: Repository, small: Repository) -> None:
    published = Path(small.environment["FASHION_MNIST_DIR"])
    for name in source.git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if (ROOT / name).is_file() and not name.startswith(("dvc.lock", "metrics/", "plots/")):
            (small.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, small.root / name)
    small.append("stages/core/fashion_mnist.py", "\n")
    for name, array in small_data_set().items():
        content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        (published / name).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        small.append(
            "stages/core/fashion_mnist.py", f'FILES["{name}"] = Published(\n    {array.shape},\n    "{sha256}",\n)'
        )
    for name, value in PARAMETERS.items():
        small.set_parameter(name, value)
    small.git("init", "--quiet")
    small.repro()
    small.commit("Reproduce the pipeline on a small data set")


@pytest.fixture(scope="session")
def fresh(source: Repository, shared: Path) -> Repository:
    clone, log = Repository(shared / "fresh", source.environment), shared / "fresh.log"
    with first(shared / "fresh.lock") as is_first:
        if is_first:
            source.clone(clone.root)
            link_environment(clone.root)
            for name in ("metrics", "plots"):
                shutil.rmtree(clone.root / name)
            log.write_text(clone.run("make", "repro", "ENVIRONMENT="))
    return clone


@pytest.fixture
def pipeline(reproduced: Repository, tmp_path: Path) -> Iterator[Repository]:
    copy = reproduced.copy(tmp_path / "pipeline")
    yield copy
    shutil.rmtree(copy.root)  # pytest keeps the folders of its last runs
