"""The newcomer's path: make with nothing but Python, git and make; and what it says when something is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the environment is made of, and a PATH with the system's tools but no Python."""
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "requirements.lock", "requirements-gpu.lock", "tools/setup/environment.sh"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "cat", "sed", "mktemp", "rm", "grep", "tail", "tr", "cut", "touch"):
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON")}
    command = [str(shutil.which("make")), *words]
    return subprocess.run(
        command, cwd=folder, env=base | {"PATH": str(folder / "bin")} | environment, capture_output=True, text=True
    )


def script(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def message(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that is ours; make adds one of its own."""
    assert done.returncode != 0
    ours, makes = done.stderr.splitlines()
    assert makes.startswith("make: *** ")
    return ours


def test_a_fresh_clone_reproduces_the_commit_byte_for_byte_with_one_command(source: Any, tmp_path: Path) -> None:
    clone = source.clone(tmp_path / "clone")
    for name in ("metrics", "plots"):
        shutil.rmtree(clone.root / name)
    output = clone.run("make", "repro")

    assert (clone.root / ".venv/requirements.lock.installed").exists()
    assert output.count("Running stage '") == 5
    assert clone.changed() == set()
    assert "Data and pipelines are up to date." in clone.run("make", "repro")


def test_a_missing_python_is_one_line(folder: Path) -> None:
    expected = "environment: expected Python 3.11, 3.12 or 3.13, found no python3: install one, or name it: "
    assert message(make(folder, "repro")).startswith(expected)


@pytest.mark.parametrize("version", ["3.9.2", "3.14.0"])
def test_a_python_too_old_or_too_new_is_one_line(folder: Path, version: str) -> None:
    script(folder, "python3", f'[ "$1" = -V ] && echo Python {version} || exit 1')
    assert f"found Python {version}: install one" in message(make(folder, "repro"))


def test_a_python_can_be_named_and_a_newer_one_is_looked_for(folder: Path) -> None:
    script(folder, "python3", '[ "$1" = -V ] && echo Python 3.9.2 || exit 1')
    good = '[ "$1" = -c ] && exit 0; [ "$1" = -V ] && echo Python 3.12.1 && exit 0; exit 1'
    script(folder, "python3.12", good)
    script(folder, "mine", good)

    for words in ([], ["PYTHON=mine"]):
        done = make(folder, "repro", *words)
        assert "environment: making .venv with Python 3.12.1 from requirements.lock" in done.stdout
        assert "expected Python's venv and ensurepip, found none" in message(done)


def test_an_unreachable_index_is_one_line(folder: Path) -> None:
    script(folder, "python3", f'exec {Path(sys.base_prefix, "bin/python3")} "$@"')
    nowhere = "http://127.0.0.1:9/simple"
    done = make(folder, "repro", PIP_INDEX_URL=nowhere, PIP_RETRIES="0", PIP_NO_CACHE_DIR="1", PIP_NO_INDEX="1")

    assert message(done).startswith("environment: expected uv from the package index, got: ERROR: ")
    assert message(done).endswith(": check the network and PIP_INDEX_URL")
    assert not (folder / ".venv/lock").exists()


def test_unknown_extras_are_refused(folder: Path) -> None:
    done = make(folder, "repro", "EXTRAS=tpu")
    assert done.returncode != 0
    assert "expected EXTRAS=gpu or none, got EXTRAS=tpu" in done.stderr


def test_extras_choose_the_lock_and_are_remembered(folder: Path) -> None:
    assert "environment.sh requirements-gpu.lock" in make(folder, "-n", "repro", "EXTRAS=gpu").stdout
    assert "environment.sh requirements.lock" in make(folder, "-n", "repro").stdout
    (folder / ".venv").mkdir()
    (folder / ".venv/lock").write_text("requirements-gpu.lock\n")
    assert "environment.sh requirements-gpu.lock" in make(folder, "-n", "test").stdout


def test_ci_runs_lint_and_tests() -> None:
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make lint test"
    assert os.access(ROOT / ".ci/run", os.X_OK)
