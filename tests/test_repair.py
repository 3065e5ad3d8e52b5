"""What ``make repro`` mends after a dvc was killed in its bookkeeping, and what it leaves alone."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.command import UserError
from tools import repair

# Valid YAML, but no lock: seen after a kill.
CUT_SHORT = "schema: '2.0'\nstages:\n  train:\n    cmd: train\n    params:\n"
COMMITTED = "schema: '2.0'\nstages:\n  train:\n    cmd: train\n"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Path:
    """A repository with a committed dvc.lock, and in it."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    Path(".dvc/tmp").mkdir(parents=True)
    Path("dvc.lock").write_text(COMMITTED)
    for words in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-qm", "Lock"]):
        subprocess.run(["git", *words], check=True)
    return tmp_path


@pytest.mark.parametrize(
    "damage", ["", "schema: '2.0'\nstages:\n  train:\n    cmd: 'tr", "stages: [", "- a\n", "\0\0", CUT_SHORT]
)
def test_a_damaged_lock_is_restored_from_git(clone: Path, damage: str) -> None:
    Path("dvc.lock").write_text(damage)

    assert repair.repair() == ["repair: dvc.lock, which a killed dvc had cut short, is restored from Git"]
    assert Path("dvc.lock").read_text() == COMMITTED
    assert repair.repair() == []


def test_a_damaged_lock_that_git_does_not_know_is_removed(clone: Path) -> None:
    subprocess.run(["git", "rm", "-q", "dvc.lock"], check=True)
    subprocess.run(["git", "commit", "-qm", "No lock"], check=True)
    Path("dvc.lock").touch()

    assert repair.repair() == ["repair: dvc.lock, which a killed dvc had cut short, is removed"]
    assert not Path("dvc.lock").exists()


@pytest.mark.parametrize("damage", ["", '{"write": {"data/mo', "[]"])
def test_a_damaged_rwlock_is_removed(clone: Path, damage: str) -> None:
    repair.RWLOCK.write_text(damage)

    assert repair.repair() == ["repair: removed .dvc/tmp/rwlock, which a killed dvc had cut short"]
    assert not repair.RWLOCK.exists()


@pytest.mark.parametrize("lock", [COMMITTED, COMMITTED.replace("train", "another"), "schema: '2.0'\n"])
def test_whole_files_are_left_alone(clone: Path, lock: str) -> None:
    Path("dvc.lock").write_text(lock)
    repair.RWLOCK.write_text("{}")

    assert repair.repair() == []
    assert (Path("dvc.lock").read_text(), repair.RWLOCK.read_text()) == (lock, "{}")


def test_nothing_is_touched_while_a_dvc_holds_its_lock(clone: Path) -> None:
    Path("dvc.lock").write_text("")
    with repair.REPOSITORY_LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        with pytest.raises(UserError, match=r"^expected no dvc at work in this clone, found its lock held: wait for"):
            repair.repair()
    assert Path("dvc.lock").read_text() == ""


@pytest.mark.parametrize("command", [["dvc"], ["-m", "dvc"]])
def test_nothing_is_touched_while_a_dvc_lives_here(clone: Path, tmp_path: Path, command: list[str]) -> None:
    Path("dvc.lock").write_text("")
    Path("dvc.py").write_text("import time; print('alive', flush=True); time.sleep(60)")
    Path("dvc").write_text(Path("dvc.py").read_text())
    alive: Any = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert alive.stdout.readline() == "alive\n"
        with pytest.raises(UserError, match=rf"found process {alive.pid}: wait for its end, or stop it$"):
            repair.repair()
        assert Path("dvc.lock").read_text() == ""
    finally:
        alive.kill()
        alive.communicate()
    assert len(repair.repair()) == 1


def test_dvc_fails_on_the_damage_and_runs_after_the_repair(pipeline: Any) -> None:
    (pipeline.root / "dvc.lock").write_text("")
    (pipeline.root / ".dvc/tmp/rwlock").write_text("{")
    with pytest.raises(AssertionError, match="exit code 255"):
        pipeline.repro()

    lines = pipeline.run("python", "-m", "tools.repair").splitlines()
    assert [line.split(",")[0] for line in lines] == ["repair: removed .dvc/tmp/rwlock", "repair: dvc.lock"]
    assert pipeline.repro().ran == []
    assert pipeline.changed() == set()
