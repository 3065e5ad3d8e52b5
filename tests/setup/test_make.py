"""The newcomer's path: make with nothing but Python, git and make."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from conftest import Repository

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow  # the real data
def test_a_fresh_clone_reproduces_the_commit_byte_for_byte_with_one_command(fresh: Repository) -> None:
    # Its environment is linked; .ci/run makes one in a fresh clone.
    printed = fresh.root.with_name("fresh.log").read_text()
    assert printed.count("Running stage '") == 5
    promised = (ROOT / "README.md").read_text().partition("```text\n")[2].partition("```")[0]
    assert [line for line in promised.splitlines() if f"{line}\n" not in printed] == [] != promised
    assert fresh.changed() == set()
    assert "Data and pipelines are up to date." in fresh.run("make", "repro", "ENVIRONMENT=")


def test_unknown_extras_are_refused(tmp_path: Path) -> None:
    done = make(tmp_path, "repro", "EXTRAS=tpu")
    assert done.returncode != 0
    assert "expected EXTRAS=gpu, EXTRAS=proof or none, got EXTRAS=tpu" in done.stderr


def test_extras_choose_the_lock_and_are_remembered(tmp_path: Path) -> None:
    assert "environment.sh requirements-gpu.lock" in make(tmp_path, "-n", "repro", "EXTRAS=gpu").stdout
    assert "environment.sh requirements.lock" in make(tmp_path, "-n", "repro").stdout
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/lock").write_text("requirements-gpu.lock\n")
    assert "environment.sh requirements-gpu.lock" in make(tmp_path, "-n", "test").stdout


def test_make_alone_prints_every_target(tmp_path: Path) -> None:
    targets = re.search(r"^\.PHONY: help (.*) environment$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    printed = make(tmp_path).stdout
    assert sorted(re.findall(r"make ([\w-]+)", printed)) == sorted(targets[1].split())
    assert make(tmp_path, "help").stdout == printed


def test_test_all_leaves_out_no_test_and_test_only_the_slow_ones(tmp_path: Path) -> None:
    def command(*words: str) -> list[str]:
        return shlex.split(make(tmp_path, "-n", *words).stdout.splitlines()[-1])

    assert command("test-all") == ["python", "-m", "pytest"]
    assert command("test") == ["python", "-m", "pytest", "-m", "not slow"]
    assert command("test", "FILE=tests/test_train.py") == ["python", "-m", "pytest", "tests/test_train.py"]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["testpaths"] == ["tests"]
    assert not {"-m", "-k"} & {*settings["addopts"].split()}
    assert not [word for word in settings["addopts"].split() if word.startswith(("--ignore", "--deselect"))]
