"""What a full disk, missing rights, no home, no network and a second dvc do to a run, and the way back from each.

The disks and the network are those of namespaces that a test makes and leaves, which needs no privileges.
"""

import hashlib
import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stages.download import SOURCES
from tests.conftest import Repository

MAKE_REPRO = ("make", "repro", "ENVIRONMENT=", "--old-file=.venv/plots.html")  # in the environment of the tests
NO_SPACE = "No space left on device"


@dataclass(frozen=True)
class Place(Repository):
    """A repository whose commands start with ``enter``, which takes them somewhere."""

    enter: tuple[str, ...] = ()

    def run(self, *command: str) -> str:
        return super().run(*self.enter, *command)

    def failure(self, *command: str) -> list[str]:
        """Run a command that has to fail; return the lines that it wrote to stderr."""
        done = subprocess.run(
            [*self.enter, *command], cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode != 0, done.stdout
        return [line for line in done.stderr.splitlines() if line and not line.startswith("make")]

    def files(self, *folders: str) -> dict[str, str]:
        """The SHA-256 of every file in some folders; in the whole tree if none is named."""
        paths = (path for folder in folders or (".",) for path in (self.root / folder).rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def enlarge(self) -> None:
        """Have images of four times the size made."""
        self.set_parameter("resize.height", 64)
        self.set_parameter("resize.width", 64)

    def lock(self) -> str:
        return (self.root / "dvc.lock").read_text()


def unshare(*options: str) -> tuple[str, ...]:
    """The beginning of a command that runs in namespaces of its own; skip the test where the kernel makes none."""
    command = ("unshare", "--user", *options)
    probe = subprocess.run([*command, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(probe.stderr.strip())
    return command


def another_user(number: int) -> tuple[str, ...]:
    """The beginning of a command of the same user under another number, whom root's privileges do not follow."""
    return unshare(f"--map-user={number}", f"--map-group={number}")


@pytest.fixture
def copy(pipeline: Repository) -> Place:
    """The small pipeline of this test."""
    return Place(pipeline.root, pipeline.environment)


# No room.


@pytest.fixture
def mounted(copy: Place, tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """A function that puts the small pipeline, or a folder of it, on a disk of its own, and returns it there."""
    with ExitStack() as processes:

        def mounted(folder: str = ".") -> Place:
            command = (*unshare("--map-root-user", "--mount"), "cat")
            holder = processes.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.write(b"ready\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == b"ready\n"  # by then cat is in its namespace
            enter = ("nsenter", "--preserve-credentials", "--user", "--mount", f"--target={holder.pid}")
            disk = copy.root / folder
            there = Path(f"/proc/{holder.pid}/root{disk}")
            subprocess.run([*enter, "mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
            shutil.copytree(disk, there, dirs_exist_ok=True)
            root = Path(f"/proc/{holder.pid}/root{copy.root}")
            return Place(root, copy.environment, (*enter, "env", f"--chdir={copy.root}"))

        yield mounted


def fill(folder: Path, *, leave: int) -> Path:
    """Take all room on a disk but ``leave`` bytes."""
    path = folder / "fill.tmp"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - leave)
    return path


def way_back(lines: list[str], verb: str, error: str) -> list[str]:
    """The commands that the one line of a stage names, after checking it."""
    (line,) = (line for line in lines if not line.startswith("ERROR: "))
    expected = (
        rf"{verb}: (.+: )?{error}: fix that and run `dvc repro`; `(.+)` brings back the last commit's results; .+"
    )
    named = re.fullmatch(expected, line)
    assert named, line
    return named[2].split(" && ")


@pytest.mark.slow  # a disk and two runs of dvc
def test_a_disk_full_at_the_end_of_a_stage_is_one_line_with_a_way_back_that_works(
    mounted: Callable[..., Place],
) -> None:
    place = mounted("data")
    before, lock = place.files("data", "metrics", "plots"), place.lock()
    place.enlarge()
    filled = fill(place.root / "data", leave=0)

    commands = way_back(place.failure("dvc", "repro"), "resize", NO_SPACE)
    kept = {path: content for path, content in before.items() if not path.startswith("data/resized/")}
    after = place.files("data", "metrics", "plots")
    assert after == kept | {"data/fill.tmp": after["data/fill.tmp"]}
    assert place.lock() == lock

    for command in commands:
        place.run(*shlex.split(command))
    filled.unlink()
    assert place.files("data", "metrics", "plots") == before
    assert place.changed() == {"params.yaml"}


@pytest.mark.slow  # a disk and runs of dvc
def test_a_disk_full_while_dvc_copies_to_its_cache_costs_no_result(mounted: Callable[..., Place], copy: Place) -> None:
    place = mounted()
    before = place.files("data", "metrics", "plots")
    place.enlarge()
    filled = fill(place.root, leave=4_000_000)  # for the larger images, but not twice

    lines = place.failure("dvc", "repro")
    assert any(line.startswith("ERROR: failed to transfer ") and NO_SPACE in line for line in lines)
    for command in way_back(lines, "train", NO_SPACE):  # dvc goes on to it
        place.run(*shlex.split(command))
    filled.unlink()
    assert place.files("data", "metrics", "plots") == before
    assert place.changed() == {"params.yaml"}

    place.run("python", "-m", "tools.setup.repair")  # as make repro does, but only as far as what was interrupted
    copy.enlarge()
    for pipeline in (place, copy):
        pipeline.dvc("repro", "resize")
    assert place.lock() == copy.lock()
    shutil.rmtree(place.root / "data/resized")
    place.dvc("checkout", "resize")
    assert place.files("data/resized") == copy.files("data/resized")


FILL = """
import os, shutil
with open("fill.tmp", "wb") as file:
    os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(".").free)
"""


@pytest.mark.slow  # a disk and runs of dvc
def test_a_disk_full_while_dvc_does_its_bookkeeping_costs_no_result(mounted: Callable[..., Place]) -> None:
    place = mounted()
    place.append("stages/render.py", FILL)  # after it has published: it has no output in the cache

    lines = place.failure("dvc", "repro")
    assert [line for line in lines if NO_SPACE in line] == lines
    (place.root / "fill.tmp").unlink()
    place.git("restore", "stages")
    place.run(*MAKE_REPRO)
    assert place.changed() == set()


# No rights.


@pytest.fixture
def rightless(copy: Place) -> Place:
    """The small pipeline for a user whom permissions bind, as they do not root."""
    return replace(copy, enter=another_user(next(user.pw_uid for user in pwd.getpwall() if user.pw_uid)))


@pytest.mark.slow  # runs of dvc
def test_an_output_that_may_not_be_replaced_is_one_line_of_dvc_and_nothing_is_lost(rightless: Place) -> None:
    rightless.set_parameter("train.lr", 2)
    (rightless.root / "data").chmod(0o555)
    lines = rightless.failure("dvc", "repro")
    (rightless.root / "data").chmod(0o755)

    assert len(lines) == 1
    assert lines[0].endswith(f"Permission denied: '{rightless.root / 'data/model.npz'}'")
    rightless.git("restore", "params.yaml")
    rightless.run(*MAKE_REPRO)
    assert rightless.changed() == set()


@pytest.mark.slow  # runs of dvc
def test_a_folder_that_takes_no_output_is_one_line_with_the_way_back(rightless: Place) -> None:
    before = rightless.files("data", "metrics", "plots")
    rightless.set_parameter("evaluate.batch_index", 1)
    (rightless.root / "data/errors.npz").unlink()  # the last of its stage's files, in another folder
    (rightless.root / "data").chmod(0o555)
    lines = rightless.failure("dvc", "repro")
    (rightless.root / "data").chmod(0o755)

    for command in way_back(lines, "evaluate", "Permission denied"):
        rightless.run(*shlex.split(command))
    assert rightless.files("data", "metrics", "plots") == before
    assert rightless.changed() == {"params.yaml"}


@pytest.mark.slow  # runs of dvc
def test_a_read_only_tree_is_one_line_of_dvc_and_stays_as_it_is(rightless: Place) -> None:
    rightless.set_parameter("train.lr", 0.2)
    before = rightless.files()
    modes = {path: path.stat().st_mode for path in [rightless.root, *rightless.root.rglob("*")]}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    lines = rightless.failure(*MAKE_REPRO)
    for path, mode in modes.items():
        path.chmod(mode)

    assert [line for line in lines if "Permission denied" in line] == lines[:1]
    assert rightless.files() == before
    rightless.git("restore", "params.yaml")
    rightless.run(*MAKE_REPRO)
    assert rightless.changed() == set()


# No home and no network.


@pytest.fixture
def homeless(copy: Place) -> Place:
    """The small pipeline with nothing in the environment that names a folder of the user's."""
    pointers = ("HOME", "DVC_GLOBAL_CONFIG_DIR")
    return replace(
        copy, environment={name: copy.environment[name] for name in copy.environment if name not in pointers}
    )


@pytest.mark.slow  # every stage runs again
def test_without_home_and_network_a_run_gives_the_same_lock_in_silence(homeless: Place, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0::/proc/none:/bin/sh\n")
    without = unshare("--map-root-user", "--mount", "--net")
    mount = f'mount --bind {tmp_path / "passwd"} /etc/passwd && exec "$@"'
    command = [*without, "sh", "-c", mount, "sh", "dvc", "repro", "--force"]
    done = subprocess.run(command, cwd=homeless.root, env=homeless.environment, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert homeless.changed() == set()


@pytest.mark.parametrize("home", [{}, {"HOME": "/dev/null/none"}], ids=["unknown", "a file"])
def test_a_home_that_dvc_cannot_do_with_is_one_line(homeless: Place, home: dict[str, str]) -> None:
    place = replace(homeless, enter=another_user(4711), environment={**homeless.environment, **home})
    (line,) = place.failure(*MAKE_REPRO)
    assert line.startswith("repair: ")


def test_without_network_and_files_the_download_names_every_source_and_touches_nothing(copy: Place) -> None:
    environment = {name: value for name, value in copy.environment.items() if name != "FASHION_MNIST_DIR"}
    place = replace(copy, enter=unshare("--map-root-user", "--net"), environment=environment)
    before = place.files("data")
    (line,) = place.failure("python", "-m", "stages.download", "data/raw")

    assert line.startswith(f"download: expected Fashion-MNIST from one of {len(SOURCES)} sources, found it in none (")
    assert [source for source in SOURCES if f"{source}: " not in line] == []
    assert line.endswith("or set FASHION_MNIST_DIR to a directory with the four files")
    assert place.files("data") == before


# Two at once.


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Callable[[], str]]]:
    """A function that starts dvc and returns when it is in ``download``, with a function that lets it go on."""
    with ExitStack() as processes:

        def start(place: Place, *command: str) -> Callable[[], str]:
            published = Path(place.environment["FASHION_MNIST_DIR"])
            gated = Path(shutil.copytree(published, tmp_path / f"published for {place.root.name}"))
            images = "train-images-idx3-ubyte"
            (gated / images).unlink()
            os.mkfifo(gated / images)
            process = processes.enter_context(
                subprocess.Popen(
                    command,
                    cwd=place.root,
                    env=place.environment | {"FASHION_MNIST_DIR": str(gated)},
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            processes.callback(process.kill)
            assert process.stdout is not None
            for line in process.stdout:
                if line == "Running stage 'download':\n":
                    break

            def go_on() -> str:
                # It ends when the stage has read it, and the stage waits for it before it does anything.
                subprocess.run(["cp", str(published / images), str(gated / images)], check=True, timeout=120)
                output, _ = process.communicate(timeout=300)
                assert process.returncode == 0
                return str(output)

            go_on.pid = process.pid  # type: ignore[attr-defined]
            return go_on

        yield start


@pytest.mark.slow  # runs of dvc
def test_a_second_dvc_in_a_clone_is_refused_with_the_process_of_the_first_which_ends_right(
    copy: Place, start: Callable[..., Any]
) -> None:
    first = start(copy, "dvc", "repro", "--force", "download")
    second, make = copy.failure("dvc", "repro"), copy.failure(*MAKE_REPRO)
    first()

    assert second[0].endswith("/data/raw' is busy, it is being blocked by:")
    assert second[1].startswith(f"  (PID {first.pid}): ")
    expected = "expected no dvc at work in this clone"
    (line,) = make
    assert line.startswith(f"repair: {expected}, found process {first.pid} (")
    assert line.endswith("/dvc repro --force download), which .dvc/tmp/rwlock names: wait for its end, or stop it")
    assert copy.changed() == set()
    assert copy.repro().ran == []


@pytest.mark.slow  # two runs of dvc
def test_two_clones_with_one_cache_run_at_once_and_end_with_the_same_lock(
    copy: Place, start: Callable[..., Any], tmp_path: Path
) -> None:
    clones = [replace(copy, root=copy.clone(tmp_path / name).root) for name in ("one", "other")]
    for clone in clones:
        clone.dvc("cache", "dir", "--local", str(tmp_path / "shared"))
    ends = [start(clone, "dvc", "repro", "resize") for clone in clones]
    for end in ends:
        end()

    data = copy.files("data/raw", "data/resized")
    for clone in clones:
        assert clone.changed() == set()
        assert clone.files("data/raw", "data/resized") == data
        for folder in ("raw", "resized"):
            shutil.rmtree(clone.root / "data" / folder)
        clone.dvc("checkout", "resize", "--with-deps")
        assert clone.files("data/raw", "data/resized") == data
