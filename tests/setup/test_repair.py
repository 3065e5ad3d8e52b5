"""What ``make repro`` repairs before it starts dvc, when it refuses to, and what it leaves alone."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from stages.core.command import UserError
from tools.setup import repair
from tools.setup.objects import md5
from tools.setup.repair import LOCK, REPOSITORY_LOCK, RWLOCK

# Valid YAML, but no lock: seen after a kill.
CUT_SHORT = "schema: '2.0'\nstages:\n  train:\n    cmd: train\n    params:\n"
COMMITTED = "schema: '2.0'\nstages:\n  train:\n    cmd: train\n"
CONFLICT = f"<<<<<<< HEAD\n{COMMITTED}=======\n{CUT_SHORT}>>>>>>> other\n"


def repaired() -> list[str]:
    """What is said to have been done."""
    return [line.removeprefix("repair: ") for line in repair.repair()]


def refusal() -> str:
    """The line of a repair that ends without having touched anything."""
    with pytest.raises(UserError) as caught:
        repaired()
    return str(caught.value)


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Callable[[Path], None]:
    """Work in a folder, in the environment of the tests."""

    def enter(folder: Path) -> None:
        monkeypatch.chdir(folder)
        for name in [*os.environ]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return enter


@pytest.fixture
def clone(tmp_path: Path, enter: Callable[[Path], None]) -> Path:
    """A repository with a committed dvc.lock, and in it."""
    enter(tmp_path)
    RWLOCK.parent.mkdir(parents=True)
    LOCK.write_text(COMMITTED)
    for words in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-qm", "Lock"]):
        subprocess.run(["git", *words], check=True)
    return tmp_path


@pytest.fixture
def small(pipeline: Any, enter: Callable[[Path], None]) -> Any:
    """The small pipeline, and in it."""
    enter(pipeline.root)
    return pipeline


# dvc.lock


def test_a_damaged_lock_is_restored_from_the_last_commit_also_beside_a_left_lock_of_git(clone: Path) -> None:
    (clone / ".git/index.lock").touch()
    for damage in ("", "schema: '2.0'\nstages:\n  train:\n    cmd: 'tr", "stages: [", "- a\n", "\0\0", CUT_SHORT):
        LOCK.write_text(damage)
        held = "what DVC cannot read" if damage else "nothing"
        assert repaired() == [f"restored dvc.lock, which held {held}, from the last commit"]
        assert LOCK.read_text() == COMMITTED
    assert repaired() == []


@pytest.mark.parametrize("found", [CUT_SHORT, CONFLICT], ids=["damage", "conflict"])
def test_what_git_cannot_restore_is_named_and_left(clone: Path, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    named = "the conflict markers of a merge" if found == CONFLICT else "what DVC cannot read"
    LOCK.write_text(found)
    if found == CONFLICT:
        assert refusal().endswith(
            f"found {named}: `git restore --source=HEAD dvc.lock` takes this branch's; then run `make repro`"
        )
    with monkeypatch.context() as foreign:
        foreign.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        foreign.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        assert f"found {named}; asked for the committed one, git says: fatal: detected dubious ownership" in refusal()
    subprocess.run(["git", "commit", "-qam", "Damage"], check=True)
    assert f"found {named}, and {named} in the last commit: " in refusal()
    assert LOCK.read_text() == found


def test_a_damaged_lock_that_is_in_no_commit_is_removed(clone: Path) -> None:
    subprocess.run(["git", "rm", "-q", "dvc.lock"], check=True)
    subprocess.run(["git", "commit", "-qm", "No lock"], check=True)
    LOCK.touch()
    assert repaired() == ["removed dvc.lock, which held nothing and is in no commit"]
    assert not LOCK.exists()


@pytest.mark.parametrize("lock", [COMMITTED, COMMITTED.replace("train", "another"), "schema: '2.0'\n"])
def test_sound_files_are_left_alone(clone: Path, lock: str) -> None:
    LOCK.write_text(lock)
    RWLOCK.write_text("{}")
    assert repaired() == []
    assert (LOCK.read_text(), RWLOCK.read_text()) == (lock, "{}")


# A dvc at work


def test_without_git_the_line_names_two_commands_of_which_each_makes_it_work(clone: Path) -> None:
    shutil.rmtree(".git")
    for words in (["git", "init", "--quiet"], ["dvc", "config", "--local", "core.no_scm", "true"]):
        assert re.match(r"expected Git's repository, but .+: run `git init`, or .+no_scm true`$", refusal())
        subprocess.run(words, check=True)
        assert repaired() == []
        shutil.rmtree(".git", ignore_errors=True)


def note(pid: int, mode: str = "write") -> None:
    """Write what DVC writes while the process ``pid`` runs a stage."""
    user = {"pid": pid, "cmd": "/bin/dvc repro"}
    uses = {"write": {"/clone/data/raw": user}} if mode == "write" else {"read": {"/clone/dvc.lock": [user]}}
    RWLOCK.write_text(json.dumps(uses))


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Start a Python that does nothing; end it at the end of the test."""
    started = []

    def start(*command: str, cwd: Path = tmp_path) -> int:
        for name in ("dvc", "dvc.py", "other.py"):
            (cwd / name).write_text("import time; print('alive', flush=True); time.sleep(60)")
        process: Any = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=cwd)
        started.append(process)
        assert process.stdout.readline() == "alive\n"
        return int(process.pid)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("damage", ['{"write": {"data/mo', '{"write": {"data": {"pid": "x"}}}'])
def test_a_list_of_users_that_dvc_cannot_read_is_removed(clone: Path, damage: str) -> None:
    RWLOCK.write_text(damage)
    assert repaired() == ["removed .dvc/tmp/rwlock, which DVC cannot read"]
    assert not RWLOCK.exists()


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_process_that_is_not_the_one_that_dvc_noted_is_not_in_the_way(
    clone: Path, start: Any, tmp_path_factory: pytest.TempPathFactory, mode: str
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    another_clone = start("dvc", cwd=tmp_path_factory.mktemp("other"))
    for pid, age in ((dead.pid, 0), (start("other.py"), 0), (os.getpid(), 0), (another_clone, 3600)):
        note(pid, mode)
        os.utime(RWLOCK, (RWLOCK.stat().st_mtime - age,) * 2)  # of the last, written before that dvc was started
        assert repaired() == [f"removed .dvc/tmp/rwlock: the dvc that it names (process {pid}) is gone"]
        assert not RWLOCK.exists()


@pytest.mark.parametrize("mode", ["write", "read"])
def test_nothing_is_touched_while_the_noted_dvc_lives(
    clone: Path, start: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    LOCK.write_text("")
    pid = start("dvc", cwd=tmp_path_factory.mktemp("other"))
    note(pid, mode)
    found = f"process {pid} (/bin/dvc repro), which .dvc/tmp/rwlock names"
    assert refusal() == f"expected no dvc at work in this clone, found {found}: wait for its end, or stop it"

    def denied(process: Any) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "cmdline", denied)
    assert f"found process {pid}, which .dvc/tmp/rwlock names and only its owner may look at: " in refusal()
    assert (LOCK.read_text(), RWLOCK.exists()) == ("", True)


@pytest.mark.parametrize("command", [["dvc"], ["-m", "dvc"]])
def test_nothing_is_touched_while_a_dvc_lives_here_or_holds_its_lock(
    clone: Path, start: Any, command: list[str]
) -> None:
    LOCK.write_text("")
    with REPOSITORY_LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "found .dvc/tmp/lock held: " in refusal()
    assert f"found process {start(*command)} (dvc): " in refusal()
    assert LOCK.read_text() == ""


# The command


def run(repository: Any) -> tuple[int, str, str]:
    """Run the command; return its exit code and what it wrote to stdout and stderr."""
    command = ["python", "-m", "tools.setup.repair"]
    done = subprocess.run(command, cwd=repository.root, env=repository.environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file of a working tree but Python's."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_the_command_repairs_what_dvc_fails_on_refuses_in_one_line_and_is_silent_otherwise(pipeline: Any) -> None:
    before = files(pipeline.root)
    assert run(pipeline) == (0, "", "")
    assert files(pipeline.root) == before

    (pipeline.root / LOCK).write_text("")
    (pipeline.root / RWLOCK).write_text("{")
    with pytest.raises(AssertionError, match="exit code 255"):
        pipeline.repro()
    code, output, errors = run(pipeline)
    assert [line.split(",")[0] for line in output.splitlines()] == [
        f"repair: removed {RWLOCK}",
        f"repair: restored {LOCK}",
    ]
    assert (code, errors) == (0, "")
    assert pipeline.repro().ran == []
    assert pipeline.changed() == set()

    (pipeline.root / LOCK).write_text(CONFLICT)
    code, output, errors = run(pipeline)
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("repair: dvc.lock: expected a lock file of DVC, found the conflict markers of a merge")


@pytest.mark.slow  # checkouts
def test_damaged_databases_of_dvc_are_moved_aside(small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    small = type(small)(small.root, dict(os.environ))
    shutil.rmtree("data/raw")
    small.dvc("checkout")
    paths = [*(tmp_path / "site").rglob("*.db")]
    assert {path.parent.parent.name for path in paths} >= {"hashes", "index"}
    for path in paths:
        path.write_bytes(b"no database" * 1000)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    assert sorted(repaired()) == sorted(f"moved a damaged database of DVC's to {path}.damaged" for path in paths)
    assert [path.with_name(f"{path.name}.damaged").stat().st_size for path in paths] == [11000] * len(paths)
    shutil.rmtree("data/raw")
    small.dvc("checkout")
    assert small.dvc("status") == "Data and pipelines are up to date.\n"


@pytest.mark.parametrize(("path", "error"), [("dvc.yaml", "stages: ["), (".dvc/config", "[core")])
def test_an_error_in_what_dvc_reads_is_left_for_dvc_to_name(small: Any, path: str, error: str) -> None:
    Path(path).write_text(f"{error}\n")
    before = files(small.root)
    assert repaired() == []
    assert files(small.root) == before


# Damaged data


def bit_flipped(content: bytes) -> bytes:
    place = content.find(b"n.npz") + 1 if b".npz" in content else len(content) // 2  # in a list: the name of a file
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def kept(repository: Any, path: str, cache: Path = Path(".dvc/cache")) -> Path:
    """Where DVC's cache has an output, a file in an output, or the list of a directory."""
    name = repository.outputs().get(path) or md5(Path(path))
    return cache / "files/md5" / name[:2] / name[2:]


def damage(path: Path, how: Callable[[bytes], bytes] = truncated) -> bytes:
    """Change the content of a read-only file, and neither its mode nor its times; return the new content."""
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(how(path.read_bytes()))
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path.read_bytes()


def moved(path: str, object_path: Path) -> str:
    return f"moved the damaged copy of {path} in DVC's cache to {object_path.absolute()}.damaged"


def objects(cache: Path) -> dict[str, str]:
    """The MD5 that each file in the cache has, by that in its name."""
    paths = [path for path in (cache / "files/md5").glob("??/*") if path.suffix != ".damaged"]
    return {path.parent.name + path.name: md5(path) for path in paths}


def data() -> dict[str, str]:
    """The MD5 of each file of data/."""
    return {str(path): md5(path) for path in Path("data").rglob("*") if path.is_file()}


@pytest.fixture
def assert_whole(small: Any) -> Callable[..., None]:
    """A check that all is as it was, in the cache too."""
    before, names = data(), objects(Path(".dvc/cache")).keys()

    def assert_whole(cache: Path = Path(".dvc/cache")) -> None:
        assert data() == before
        assert small.changed() == set()
        assert small.dvc("status") == "Data and pipelines are up to date.\n"
        found = objects(cache)
        assert [name for name in names if name not in found] == []
        assert [name for name in found if name.removesuffix(".dir") != found[name]] == []

    return assert_whole


@pytest.mark.slow  # three stages run again
def test_damaged_objects_that_dvc_would_restore_are_moved_aside_and_made_again(
    small: Any, assert_whole: Callable[..., None]
) -> None:
    paths = ["data/model.npz", "data/raw/t10k-labels-idx1-ubyte", "data/resized"]
    places = [kept(small, path) for path in paths]
    damaged = [damage(place, how) for place, how in zip(places, (bit_flipped, truncated, emptied), strict=True)]
    Path("data/model.npz").unlink()
    shutil.rmtree("data/raw")
    shutil.rmtree("data/resized")

    assert sorted(repaired()) == [moved(*pair) for pair in zip(paths, places, strict=True)]
    assert [place.with_name(f"{place.name}.damaged").read_bytes() for place in places] == damaged
    assert small.repro().ran == ["download", "resize", "train"]
    assert_whole()


@pytest.mark.slow  # a run of dvc and a checkout
def test_damaged_objects_are_made_again_where_the_working_tree_still_has_the_files(
    small: Any, assert_whole: Callable[..., None]
) -> None:
    for path in [kept(small, path) for path in ("data/raw/t10k-labels-idx1-ubyte", "data/raw")]:
        damage(path)
    assert len(repaired()) == 2
    small.repro()
    assert_whole()


@pytest.mark.slow  # a run of dvc and checkouts
def test_a_damaged_list_that_dvc_has_read_is_forgotten(small: Any, assert_whole: Callable[..., None]) -> None:
    before = data()
    damage(kept(small, "data/resized"), bit_flipped)
    shutil.rmtree("data/resized")
    small.dvc("checkout")
    assert data() != before  # a file has another name

    repaired()
    small.repro()
    shutil.rmtree("data/resized")
    small.dvc("checkout")
    assert_whole()


@pytest.mark.slow  # two runs of dvc
def test_a_damaged_object_of_earlier_parameters_is_not_restored_when_they_return(
    small: Any, assert_whole: Callable[..., None]
) -> None:
    place = kept(small, "data/errors.npz")
    small.set_parameter("evaluate.batch_index", 1)
    assert small.repro().ran == ["evaluate", "render"]
    damage(place, bit_flipped)
    assert repaired() == [moved("data/errors.npz", place)]
    small.git("restore", "params.yaml")
    small.repro()
    assert_whole()


@pytest.mark.slow  # every stage runs again
def test_damage_of_the_same_size_and_time_is_found_in_every_output(
    small: Any, assert_whole: Callable[..., None]
) -> None:
    small.dvc("status")  # from here on DVC knows sizes and times
    folders = [Path(folder).rglob("*") for folder in ("data", "metrics", "plots")]
    ours = "README.md", ".gitignore"
    results = [path for paths in folders for path in paths if path.is_file() and path.name not in ours]
    before = {path: path.read_bytes() for path in results}
    for path in before:
        damage(path, bit_flipped)
    assert small.dvc("status") == "Data and pipelines are up to date.\n"
    assert all(path.read_bytes() != content for path, content in before.items())

    assert repaired() == []
    small.repro()
    assert {path: path.read_bytes() for path in before} == before
    assert_whole()


@pytest.mark.slow  # a run of dvc for each place
@pytest.mark.parametrize("place", ["setting", ".dvc/cache"])
def test_in_a_cache_that_projects_share_only_our_own_objects_are_touched(
    small: Any, assert_whole: Callable[..., None], tmp_path: Path, place: str
) -> None:
    shared = tmp_path / "shared"
    if place == "setting":
        shutil.move(".dvc/cache", shared)
        small.dvc("cache", "dir", "--local", str(shared))
    else:
        shutil.move(place, shared)
        Path(place).symlink_to(shared)
    cache = shared if place == "setting" else Path(".dvc/cache")
    theirs = shared / "files/md5/00/0123456789abcdef0123456789abcd"
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("of another project, damaged")
    run = next((shared / "runs").glob("??/*/*"))
    text = run.read_text().partition("outs:")[0].replace("exec python", "exec another")
    run.with_name("0" * 64).write_text(f"{text}outs:\n- path: out\n  hash: md5\n  md5: 00{theirs.name}\n")
    ours = kept(small, "data/resized/validation.npz", shared)
    damage(ours, emptied)

    (line,) = repaired()
    assert line.startswith("moved the damaged copy of data/resized/validation.npz in DVC's cache to ")
    assert Path(line.rpartition(" to ")[2]).resolve() == ours.with_name(f"{ours.name}.damaged")
    assert theirs.read_text() == "of another project, damaged"
    theirs.unlink()
    assert small.repro().ran == ["resize"]
    assert_whole(cache)


@pytest.mark.slow  # runs of dvc and checkouts
@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_a_link_to_a_damaged_object_is_removed_and_one_that_may_not_be_moved_is_named(
    small: Any, assert_whole: Callable[..., None], monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    small.dvc("config", "--local", "cache.type", link)
    small.dvc("checkout", "--relink")
    labels = Path("data/raw/t10k-labels-idx1-ubyte")
    place = kept(small, str(labels))
    assert labels.samefile(place)
    damage(place, bit_flipped)

    def denied(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as theirs:
        for method in ("rename", "touch"):
            theirs.setattr(Path, method, denied)
        assert refusal().startswith(
            f"{place.absolute()}: expected {labels}, found damage, and cannot move it aside (Permission denied): "
        )
    assert repaired() == [moved(str(labels), place)]
    assert small.repro().ran == ["download"]
    assert_whole()


def test_copies_that_a_killed_dvc_left_beside_outputs_are_removed_and_no_other_file(small: Any, tmp_path: Path) -> None:
    elsewhere = shutil.move("data/raw", tmp_path / "raw")
    Path("data/raw").symlink_to(elsewhere)
    left = [f"{folder}/.3W7RmKV7x40LYR76Sj-_{k}w.tmp" for k, folder in enumerate(("data", "metrics", "plots"))]
    others = ["plots/.a.tmp", "data/errors.npz.12.tmp", ".3W7RmKV7x40LYR76Sjuscw.tmp"]
    others += ["data/raw/.3W7RmKV7x40LYR76Sjuscw.tmp"]  # may be of a dvc at work there
    for path in (*left, *others):
        Path(path).write_text("half")
    assert repaired() == [f"removed {path}, which a killed dvc had left" for path in left]
    assert [path for path in (*left, *others) if Path(path).exists()] == others
