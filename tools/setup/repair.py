"""Repair what would make the next ``dvc repro`` fail or trust damaged data. Run by ``make repro``.

    python -m tools.setup.repair

DVC writes two files in place: ``dvc.lock``, and ``.dvc/tmp/rwlock``, its list of files in use. Killed in the middle, it
leaves them empty or cut short, and every later dvc command fails. The first is restored from the last commit, and the
run cache then restores what was done since; the second, which holds nothing once no dvc is alive, is removed. So is one
that names a process whose number another program has now: DVC would wait for it. DVC's SQLite files hold what it knows
of files that it has seen, and nothing that it cannot find out again: a damaged one is moved aside.

``tools/setup/objects.py`` does the same for data. While a dvc is at work here, nothing is touched, and ``make repro``
refuses to start a second.
"""

import contextlib
import fcntl
import itertools
import json
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.rwlock import SCHEMA as RWLOCK_SCHEMA
from dvc.scm import SCMError
from voluptuous import Invalid

from stages.core.command import UserError
from stages.core.files import publish
from stages.core.way_back import is_lockfile
from tools.common.git import git, says
from tools.setup.objects import repair_objects

LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")
REPOSITORY_LOCK = Path(".dvc/tmp/lock")
CONFLICT = "the conflict markers of a merge"


def lock_problem(content: bytes) -> str | None:
    """Say what a ``dvc.lock`` with this content holds if DVC cannot read it, or return None if it can."""
    if is_lockfile(content):
        return None
    if re.search(rb"^(<{7}|>{7})( |$)", content, re.MULTILINE):
        return CONFLICT
    return "what DVC cannot read" if content else "nothing"


def users() -> list[dict[str, Any]] | None:
    """Return the processes that DVC noted as users of files, or None if its list is damaged."""
    try:
        uses = RWLOCK_SCHEMA(json.loads(RWLOCK.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (ValueError, Invalid):
        return None
    return [*uses["write"].values(), *itertools.chain(*uses["read"].values())]  # a path has one writer, many readers


def is_dvc(command: list[str]) -> bool:
    """Whether a process with this command line is a dvc: ``dvc``, ``python dvc`` or ``python -m dvc``."""
    return any(Path(word).name == "dvc" for word in command[:3])


def dvc_at_work(noted: list[dict[str, Any]] | None) -> str | None:
    """Describe a dvc that works here, or return None.

    The number of a process is given again after its end and after a restart: one that DVC noted counts only if it is
    a dvc, or has the command that DVC noted, and is older than the note.
    """
    for user in noted or []:
        try:
            process = psutil.Process(user["pid"])
            older = process.create_time() < RWLOCK.stat().st_mtime + 2  # the first is rounded
            command = process.cmdline()
            if older and (is_dvc(command) or " ".join(command).endswith(user["cmd"])):
                return f"process {process.pid} ({user['cmd']}), which {RWLOCK} names"
        except psutil.AccessDenied:
            return f"process {user['pid']}, which {RWLOCK} names and only its owner may look at"
        except psutil.NoSuchProcess:
            continue
    if REPOSITORY_LOCK.exists():
        with REPOSITORY_LOCK.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the file is closed
            except BlockingIOError:
                return f"{REPOSITORY_LOCK} held"
    here = Path.cwd()
    for process in psutil.process_iter():
        try:
            if is_dvc(process.cmdline()) and Path(process.cwd()).is_relative_to(here):
                return f"process {process.pid} (dvc)"
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # another user's, or gone
    return None


def repair_lock() -> Iterator[str]:
    """Restore a ``dvc.lock`` that DVC cannot read from the last commit, remove one that Git does not have.

    Raises:
        UserError: It has conflict markers, Git refuses to say what it has, or the last commit has no better one.
    """
    found = lock_problem(LOCK.read_bytes()) if LOCK.exists() else None
    if not found:
        return
    expected = f"{LOCK}: expected a lock file of DVC, found {found}"
    listed, committed = git("ls-tree", "HEAD", str(LOCK)), git("show", f"HEAD:./{LOCK}")
    if listed.returncode or (listed.stdout and committed.returncode):
        refusal = says(listed if listed.returncode else committed)
        raise UserError(f"{expected}; asked for the committed one, {refusal}: repair that, or remove {LOCK}")
    if not listed.stdout:
        LOCK.unlink()
        yield f"repair: removed {LOCK}, which held {found} and is in no commit"
        return
    if again := lock_problem(committed.stdout):
        raise UserError(f"{expected}, and {again} in the last commit: remove it, or restore that of an earlier commit")
    if found == CONFLICT:
        raise UserError(f"{expected}: `git restore --source=HEAD {LOCK}` takes this branch's; then run `make repro`")
    publish({LOCK: committed.stdout})
    yield f"repair: restored {LOCK}, which held {found}, from the last commit"


def repair_databases() -> Iterator[str]:
    """Move DVC's SQLite files aside that SQLite finds damaged."""
    repo = Repo.__new__(Repo)  # which knows its folder even where it cannot open the files in it
    with contextlib.suppress(sqlite3.DatabaseError):
        repo.__init__()
        repo.close()
    for path in sorted(Path(repo.site_cache_dir).rglob("*.db")):
        try:
            with contextlib.closing(sqlite3.connect(path)) as database:
                sound = database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        except sqlite3.OperationalError:  # in use, or not to be opened
            continue
        except sqlite3.DatabaseError:
            sound = False
        if not sound:
            for suffix in ("-wal", "-shm"):  # the changes that SQLite has not yet written to it
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            aside = path.rename(path.with_name(f"{path.name}.damaged"))
            yield f"repair: moved a damaged database of DVC's to {aside}"


def repair() -> Iterator[str]:
    """Repair all of it; yield a line for each thing done.

    Raises:
        UserError: A dvc is at work here, or something is damaged that cannot be repaired here.
    """
    noted = users()
    damaged = LOCK.exists() and lock_problem(LOCK.read_bytes())
    at_work = dvc_at_work(noted) if noted or noted is None or damaged else None
    if at_work:
        raise UserError(f"expected no dvc at work in this clone, found {at_work}: wait for its end, or stop it")
    if noted is None:
        RWLOCK.unlink()
        yield f"repair: removed {RWLOCK}, which DVC cannot read"
    elif noted:
        RWLOCK.unlink()
        numbers = ", ".join(sorted({str(user["pid"]) for user in noted}))
        yield f"repair: removed {RWLOCK}: the dvc that it names (process {numbers}) is gone"
    yield from repair_lock()
    try:
        yield from repair_databases()
        with Repo() as repo:
            yield from repair_objects(repo)
    except SCMError as error:
        without = "`.venv/bin/dvc config --local core.no_scm true`"
        raise UserError(f"expected Git's repository, but {error}: run `git init`, or to do without {without}") from None
    except DvcException:  # an error in dvc.yaml or the configuration: dvc repro, which comes next, names it
        return
    except (KeyError, RuntimeError) as error:  # from the search for the user's name and home
        raise UserError(f"expected a user with a home directory, found none ({error}): set HOME and USER") from None


if __name__ == "__main__":
    try:
        for line in repair():
            print(line, flush=True)
    except (UserError, OSError) as error:
        sys.exit(f"repair: {error}")
