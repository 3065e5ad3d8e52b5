"""The newcomer's path: make with nothing but Python, git and make."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_fresh_clone_reproduces_the_commit_byte_for_byte_with_one_command(source: Any, tmp_path: Path) -> None:
    clone = source.clone(tmp_path / "clone")
    for name in ("metrics", "plots"):
        shutil.rmtree(clone.root / name)
    output = clone.run("make", "repro")

    assert (clone.root / ".venv/record").exists()
    assert output.count("Running stage '") == 5
    assert clone.changed() == set()
    assert "Data and pipelines are up to date." in clone.run("make", "repro")


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
    assert sorted(re.findall(r"make (\w+)", printed)) == sorted(targets[1].split())
    assert make(tmp_path, "help").stdout == printed


def test_ci_runs_lint_and_tests() -> None:
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make lint test"
    assert os.access(ROOT / ".ci/run", os.X_OK)
