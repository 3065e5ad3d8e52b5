"""What ``make repro`` mends before it starts dvc, when it refuses to, and what it leaves alone."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.core.command import UserError
from tools.setup import repair

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


def test_without_git_the_line_names_two_commands_of_which_each_makes_it_work(clone: Path) -> None:
    shutil.rmtree(".git")
    for words in (["git", "init", "--quiet"], ["dvc", "config", "--local", "core.no_scm", "true"]):
        with pytest.raises(UserError, match=r"^expected Git's repository, but .+: run `git init`, or .+no_scm true`$"):
            repair.repair()
        subprocess.run(words, check=True)
        assert repair.repair() == []
        shutil.rmtree(".git", ignore_errors=True)


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

    lines = pipeline.run("python", "-m", "tools.setup.repair").splitlines()
    assert [line.split(",")[0] for line in lines] == ["repair: removed .dvc/tmp/rwlock", "repair: dvc.lock"]
    assert pipeline.repro().ran == []
    assert pipeline.changed() == set()


# A dvc at work, by its own list of the files in use.


def in_use(pid: int, mode: str) -> str:
    """What DVC writes to ``rwlock`` while the process ``pid`` runs a stage."""
    user = {"pid": pid, "cmd": "dvc repro"}
    return json.dumps(
        {"write": {"/clone/data/raw": user}} if mode == "write" else {"read": {"/clone/dvc.lock": [user]}}
    )


def run(repository: Any, *command: str) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it wrote to stdout and stderr."""
    done = subprocess.run(command, cwd=repository.root, env=repository.environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file of a working tree but Python's."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.fixture
def copy(pipeline: Any, tmp_path: Path) -> Any:
    """The small pipeline with a cache of its own."""
    return pipeline.copy(tmp_path / "copy")


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_dvc_that_uses_a_file_is_refused_in_one_line_and_nothing_is_touched(copy: Any, mode: str) -> None:
    (copy.root / repair.RWLOCK).write_text(in_use(os.getpid(), mode))
    damage(kept(copy, "data/model.npz"), truncated)
    before = files(copy.root)

    line = f"repair: expected no dvc at work in this clone, found process {os.getpid()}: wait for its end, or stop it\n"
    assert run(copy, "python", "-m", "tools.setup.repair") == (1, "", line)
    assert files(copy.root) == before


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_dead_dvc_that_used_a_file_is_not_in_the_way(copy: Any, mode: str) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (copy.root / repair.RWLOCK).write_text(in_use(dead.pid, mode))

    assert run(copy, "python", "-m", "tools.setup.repair") == (0, "", "")
    assert copy.repro().ran == []
    assert copy.changed() == set()


def test_copies_that_a_killed_dvc_left_beside_outputs_are_removed_and_no_other_file(copy: Any) -> None:
    left = [
        f"{folder}/.3W7RmKV7x40LYR76Sj-_{k}w.tmp" for k, folder in enumerate(("data", "data/raw", "metrics", "plots"))
    ]
    others = ["plots/.a.tmp", "data/errors.npz.12.tmp", ".3W7RmKV7x40LYR76Sjuscw.tmp"]
    for path in (*left, *others):
        (copy.root / path).write_text("half")

    done = "".join(f"repair: removed {path}, which a killed dvc had left\n" for path in left)
    assert run(copy, "python", "-m", "tools.setup.repair") == (0, done, "")
    assert [path for path in (*left, *others) if (copy.root / path).exists()] == others


# Damaged data.


def bit_flipped(content: bytes) -> bytes:
    place = content.find(b"n.npz") + 1 if b".npz" in content else len(content) // 2  # in a list: the name of a file
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def kept(repository: Any, path: str, cache: Path | None = None) -> Path:
    """Where DVC's cache has an output, a file in an output, or the list of a directory."""
    name = repository.outputs().get(path) or md5((repository.root / path).read_bytes())
    return (cache or repository.root / ".dvc/cache") / "files/md5" / name[:2] / name[2:]


def damage(path: Path, how: Callable[[bytes], bytes]) -> None:
    """Change the content of a read-only file, and neither its mode nor its times."""
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(how(path.read_bytes()))
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()  # noqa: S324 - what DVC names files by


def data(repository: Any) -> dict[str, str]:
    """The MD5 of each file of data/."""
    root = repository.root / "data"
    return {str(path.relative_to(root)): md5(path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def objects(repository: Any, cache: Path | None = None) -> dict[str, str]:
    """The MD5 that each file in the cache has, by that in its name."""
    paths = ((cache or repository.root / ".dvc/cache") / "files/md5").glob("??/*")
    return {path.parent.name + path.name: md5(path.read_bytes()) for path in paths}


@pytest.fixture
def assert_mended(copy: Any) -> Callable[..., None]:
    """A check that all is as it was, in the cache too."""
    before, names = data(copy), objects(copy).keys()

    def assert_mended(cache: Path | None = None) -> None:
        assert data(copy) == before
        assert copy.changed() == set()
        assert copy.dvc("status") == "Data and pipelines are up to date.\n"
        found = objects(copy, cache)
        assert [name for name in names if name not in found] == []
        assert [name for name in found if name.removesuffix(".dir") != found[name]] == []

    return assert_mended


@pytest.mark.parametrize("how", [bit_flipped, truncated, emptied])
def test_damaged_objects_that_dvc_would_restore_are_removed_and_made_again(
    copy: Any, assert_mended: Callable[..., None], how: Callable[[bytes], bytes]
) -> None:
    paths = [copy.root / "data" / path for path in ("resized/train.npz", "model.npz")]
    damaged = [how(path.read_bytes()) for path in paths]
    for path in paths:
        damage(kept(copy, str(path.relative_to(copy.root))), how)
        path.unlink()
    copy.dvc("checkout")
    assert [path.read_bytes() for path in paths] == damaged
    for path in paths:
        path.unlink()

    lines = [f"repair: removed the damaged copy of {path.relative_to(copy.root)} from DVC's cache\n" for path in paths]
    code, output, errors = run(copy, "python", "-m", "tools.setup.repair")
    assert (code, sorted(output.splitlines(keepends=True)), errors) == (0, sorted(lines), "")  # in the cache's order
    assert copy.repro().ran == ["resize", "train"]
    assert_mended()


@pytest.mark.parametrize("how", [bit_flipped, truncated, emptied])
def test_a_damaged_list_of_a_directory_is_removed_and_made_again(
    copy: Any, assert_mended: Callable[..., None], how: Callable[[bytes], bytes]
) -> None:
    damage(kept(copy, "data/resized"), how)
    shutil.rmtree(copy.root / "data/resized")

    line = "repair: removed the damaged copy of data/resized from DVC's cache\n"
    assert run(copy, "python", "-m", "tools.setup.repair") == (0, line, "")
    assert copy.repro().ran == ["resize"]
    assert_mended()


@pytest.mark.parametrize(
    "damaged", [["data/model.npz", "data/resized/train.npz"], ["data/raw/t10k-labels-idx1-ubyte", "data/raw"]]
)
def test_damaged_objects_are_made_again_where_the_working_tree_still_has_the_files(
    copy: Any, assert_mended: Callable[..., None], damaged: list[str]
) -> None:
    for path in [kept(copy, path) for path in damaged]:
        damage(path, truncated)

    copy.run("python", "-m", "tools.setup.repair")
    copy.repro()
    assert_mended()


def test_a_damaged_list_that_dvc_has_read_is_forgotten(copy: Any, assert_mended: Callable[..., None]) -> None:
    before = data(copy)
    damage(kept(copy, "data/resized"), bit_flipped)
    shutil.rmtree(copy.root / "data/resized")
    copy.dvc("checkout")
    assert data(copy) != before  # a file has another name

    copy.run("python", "-m", "tools.setup.repair")
    copy.repro()
    shutil.rmtree(copy.root / "data/resized")
    copy.dvc("checkout")
    assert_mended()


def test_a_damaged_object_of_earlier_parameters_is_not_restored_when_they_return(
    copy: Any, assert_mended: Callable[..., None]
) -> None:
    errors = kept(copy, "data/errors.npz")
    copy.set_parameter("evaluate.batch_index", 1)
    assert copy.repro().ran == ["evaluate", "render"]
    damage(errors, bit_flipped)
    copy.git("restore", "params.yaml")

    copy.run("python", "-m", "tools.setup.repair")
    copy.repro()
    assert copy.changed() == set()
    assert_mended()


def test_damage_of_the_same_size_and_time_is_found_in_every_output(
    copy: Any, assert_mended: Callable[..., None]
) -> None:
    copy.dvc("status")  # from here on DVC knows sizes and times
    results = [*copy.root.glob("data/**/*"), *copy.root.glob("metrics/*"), *copy.root.glob("plots/*")]
    before = {path: path.read_bytes() for path in results if path.is_file()}
    for path in before:
        damage(path, bit_flipped)
    assert copy.repro().ran == []
    assert copy.dvc("status") == "Data and pipelines are up to date.\n"
    assert all(path.read_bytes() != content for path, content in before.items())

    assert run(copy, "python", "-m", "tools.setup.repair") == (0, "", "")
    copy.repro()
    assert {path: path.read_bytes() for path in before} == before
    assert_mended()


def test_a_cache_outside_of_the_clone_is_repaired_too(
    copy: Any, assert_mended: Callable[..., None], tmp_path: Path
) -> None:
    shared = shutil.move(copy.root / ".dvc/cache", tmp_path / "shared")
    copy.dvc("cache", "dir", "--local", str(shared))
    damage(kept(copy, "data/resized/validation.npz", shared), emptied)

    line = "repair: removed the damaged copy of data/resized/validation.npz from DVC's cache\n"
    assert run(copy, "python", "-m", "tools.setup.repair") == (0, line, "")
    assert copy.repro().ran == ["resize"]
    assert_mended(shared)


def test_an_untouched_repository_stays_so_in_silence(copy: Any) -> None:
    before = files(copy.root)
    assert run(copy, "python", "-m", "tools.setup.repair") == (0, "", "")
    assert files(copy.root) == before


@pytest.mark.parametrize(
    ("path", "fault", "named"),
    [("dvc.yaml", "stages: [", "dvc.yaml"), ("dvc.yaml", "stage: {}", "dvc.yaml"), (".dvc/config", "[core", "config")],
)
def test_a_fault_in_what_dvc_reads_is_left_for_dvc_to_name(copy: Any, path: str, fault: str, named: str) -> None:
    (copy.root / path).write_text(f"{fault}\n")
    before = files(copy.root)

    assert run(copy, "python", "-m", "tools.setup.repair") == (0, "", "")
    assert files(copy.root) == before
    with pytest.raises(AssertionError, match=rf"exit code 25[15]\n.*{named}"):
        copy.repro()
