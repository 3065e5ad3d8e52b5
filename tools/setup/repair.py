"""Mend what would make the next ``dvc repro`` fail or trust damaged data. Run by ``make repro``.

    python -m tools.setup.repair

DVC writes two files in place: ``dvc.lock``, and ``.dvc/tmp/rwlock``, its list of files in use. Killed in the middle, it
leaves them empty or cut short, and every later dvc command fails. The first is restored from Git, and the run cache
then restores what was done since; the second, which holds nothing once no dvc is alive, is removed.

DVC also takes a file in its cache for what its name says as long as it is read-only, and a file in the working tree for
unchanged as long as its size and time are. Here both are hashed: a damaged one is removed from the cache, and in the
working tree given a new time, so that DVC looks at it and restores or makes it again.

Killed while it brings a file from its cache, DVC leaves its copy beside the output, under a name that ends in ``.tmp``.
Git and DVC ignore it; here it is removed.

While a dvc is at work here, nothing is touched, and ``make repro`` refuses to start a second.
"""

import fcntl
import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil
import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.scm import SCMError
from voluptuous import Invalid

from stages.core.command import UserError

LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")
REPOSITORY_LOCK = Path(".dvc/tmp/lock")
COPY = re.compile(r"\.[\w-]{22}\.tmp")  # dvc_objects.fs.utils.tmp_fname


def lock_is_damaged() -> bool:
    """Tell whether ``dvc.lock`` is there but not what DVC can read."""
    if not LOCK.exists():
        return False
    try:
        # DVC's own schema: a file cut short can still be YAML.
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(LOCK.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, Invalid):
        return True
    return False


def rwlock_is_damaged() -> bool:
    """Tell whether ``rwlock`` is there but not what DVC can read."""
    if not RWLOCK.exists():
        return False
    try:
        return not isinstance(json.loads(RWLOCK.read_text(encoding="utf-8")), dict)
    except ValueError:
        return True


def dvc_at_work(damaged: Collection[Path]) -> str | None:
    """Describe a dvc that uses files of this working tree; where a damaged file cannot tell, any that lives here."""
    if RWLOCK.exists() and RWLOCK not in damaged:
        uses = json.loads(RWLOCK.read_text(encoding="utf-8"))  # a path has one writer, and a list of readers
        users = [*uses.get("write", {}).values(), *itertools.chain(*uses.get("read", {}).values())]
        for user in users:
            if psutil.pid_exists(user["pid"]):
                return f"process {user['pid']}"
    if not damaged:
        return None
    if REPOSITORY_LOCK.exists():
        with REPOSITORY_LOCK.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the file is closed
            except BlockingIOError:
                return "its lock held"
    here = Path.cwd()
    for process in psutil.process_iter():
        try:
            is_dvc = any(Path(word).name == "dvc" for word in process.cmdline()[:3])  # dvc, python dvc, python -m dvc
            if is_dvc and Path(process.cwd()).is_relative_to(here):
                return f"process {process.pid}"
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # another user's, or gone
    return None


def is_damaged(path: Path, md5: str) -> bool:
    """Tell whether the file ``path`` is there and its content has another MD5 (hexadecimal)."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() != md5


def outputs(repo: Repo) -> Iterator[tuple[Path, Path, str]]:
    """Yield each file that ``dvc.lock`` names as an output or the list of one: its path, its place in the cache, MD5.

    The list of a directory has no path of its own; the directory stands for it.
    """
    for out in repo.index.outs:
        oid = out.hash_info.value if out.hash_info else None
        if oid is None:
            continue  # not in the lock
        path, kept = Path(out.fs_path), Path(repo.cache.local.oid_to_path(oid))
        yield path, kept, oid.removesuffix(".dir")
        if out.hash_info.isdir and kept.exists() and not is_damaged(kept, oid.removesuffix(".dir")):
            for entry in json.loads(kept.read_bytes()):
                yield path / entry["relpath"], Path(repo.cache.local.oid_to_path(entry["md5"])), entry["md5"]


def leftovers(repo: Repo) -> Iterator[Path]:
    """Yield the copies that a killed dvc left beside or in the outputs."""
    for folder in sorted({place for out in repo.index.outs for place in (Path(out.fs_path), Path(out.fs_path).parent)}):
        if folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if COPY.fullmatch(path.name))


def repair_outputs() -> list[str]:
    """Remove leftovers and damaged files of the cache; have DVC look again at damaged outputs; return lines."""
    done = []
    try:
        with Repo() as repo:
            files, cache = list(outputs(repo)), Path(repo.cache.local.path)
            names = {kept: str(path.relative_to(Path.cwd())) for path, kept, _ in files}
            for path, _, md5 in files:
                if is_damaged(path, md5):
                    path.touch()  # no line: it may be of another commit, which DVC knows how to handle
            for path in leftovers(repo):
                path.unlink()
                done.append(f"repair: removed {path.relative_to(Path.cwd())}, which a killed dvc had left")
            # The run cache restores results of earlier parameters too, which dvc.lock does not name. A cache elsewhere
            # may be many projects': there only what is named is looked at.
            for kept in sorted(cache.glob("??/*")) if cache.is_relative_to(Path.cwd()) else names:
                if kept.suffix != ".tmp" and is_damaged(kept, (kept.parent.name + kept.name).removesuffix(".dir")):
                    kept.unlink()
                    done.append(f"repair: removed the damaged copy of {names.get(kept, kept.name)} from DVC's cache")
                    if kept.suffix == ".dir":
                        repo.drop_data_index()  # where DVC remembers what it has read in it
    except SCMError as error:
        without = "`.venv/bin/dvc config --local core.no_scm true`"
        raise UserError(f"expected Git's repository, but {error}: run `git init`, or to do without {without}") from None
    except DvcException:  # a fault in dvc.yaml or the configuration: dvc repro, which comes next, names it
        return []
    except (KeyError, RuntimeError) as error:  # from the search for the user's name and home
        raise UserError(f"expected a user with a home directory, found none ({error}): set HOME and USER") from None
    return done


def repair() -> list[str]:
    """Mend all of it; return a line for each thing done.

    Raises:
        UserError: A dvc is at work here.
    """
    damaged = [path for path, is_so in ((RWLOCK, rwlock_is_damaged), (LOCK, lock_is_damaged)) if is_so()]
    at_work = dvc_at_work(damaged)
    if at_work:
        raise UserError(f"expected no dvc at work in this clone, found {at_work}: wait for its end, or stop it")
    done = []
    if RWLOCK in damaged:
        RWLOCK.unlink()
        done.append(f"repair: removed {RWLOCK}, which a killed dvc had cut short")
    if LOCK in damaged:
        restored = subprocess.run(["git", "restore", "--source=HEAD", str(LOCK)], capture_output=True)
        if restored.returncode:
            LOCK.unlink()
        how = "removed" if restored.returncode else "restored from Git"
        done.append(f"repair: {LOCK}, which a killed dvc had cut short, is {how}")
    return done + repair_outputs()


if __name__ == "__main__":
    try:
        for line in repair():
            print(line, flush=True)
    except (UserError, OSError) as error:
        sys.exit(f"repair: {error}")
