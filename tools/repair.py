"""Mend what a killed dvc can leave behind, so that the next ``dvc repro`` runs. Run by ``make repro``.

    python -m tools.repair

DVC writes two files in place: ``dvc.lock``, and ``.dvc/tmp/rwlock``, its list of files in use. Killed in the middle, it
leaves them empty or cut short, and every later dvc command fails. The first is restored from Git, and the run cache
then restores what was done since; the second, which holds nothing once no dvc is alive, is removed. While one is,
nothing is touched.
"""

import fcntl
import json
import subprocess
from pathlib import Path

import psutil
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from voluptuous import Invalid

LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")
REPOSITORY_LOCK = Path(".dvc/tmp/lock")


def dvc_is_alive() -> bool:
    """Tell whether a dvc works in this folder: it holds DVC's own lock or, while a stage runs, it merely lives here."""
    if REPOSITORY_LOCK.exists():
        with REPOSITORY_LOCK.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the file is closed
            except BlockingIOError:
                return True
    here = Path.cwd()
    for process in psutil.process_iter():
        try:
            is_dvc = any(Path(word).name == "dvc" for word in process.cmdline()[:3])  # dvc, python dvc, python -m dvc
            if is_dvc and Path(process.cwd()).is_relative_to(here):
                return True
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # another user's, or gone
    return False


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


def repair() -> list[str]:
    """Mend both files; return a line for each thing done."""
    damaged = [path for path, is_damaged in ((LOCK, lock_is_damaged()), (RWLOCK, rwlock_is_damaged())) if is_damaged]
    if not damaged:
        return []
    if dvc_is_alive():
        return ["repair: a dvc is at work here: nothing was touched"]
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
    return done


if __name__ == "__main__":
    for line in repair():
        print(line, flush=True)
