"""Look for damage in DVC's cache and in the outputs. Part of ``tools/setup/repair.py``.

DVC takes a file in its cache for what its name says as long as it is read-only, and a file in the working tree for
unchanged as long as its size and time are. Here both are hashed. A damaged one of the cache is moved aside; one of the
working tree gets a new time, or is removed if it is a link into the cache, so that DVC restores it or makes it again.

Projects may share a cache, so only the objects that ``dvc.lock`` or the run cache of these stages names are looked at.

Killed while it brings a file from its cache, DVC leaves its copy beside the output, under a name that ends in ``.tmp``.
Git and DVC ignore it; here it is removed.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from dvc.repo import Repo
from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
from voluptuous import Invalid

from stages.core.command import UserError

COPY = re.compile(r"\.[\w-]{22}\.tmp")  # dvc_objects.fs.utils.tmp_fname


def md5(path: Path) -> str:
    """Return the MD5 of a file, hexadecimal, by which DVC names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def is_damaged(path: Path, oid: str) -> bool:
    """Return whether the file ``path`` is there and its content is not that of the object ``oid``."""
    return path.is_file() and md5(path) != oid.removesuffix(".dir")


def object_path(repo: Repo, oid: str) -> Path:
    """Return where the cache has the object ``oid``."""
    return Path(repo.cache.local.oid_to_path(oid))


def files(repo: Repo, path: Path, oid: str) -> Iterator[tuple[Path, str]]:
    """Yield an output and, if it is a directory, each file in it, with the names of their objects.

    The list of a directory has no path of its own; the directory stands for it. Where the cache has no sound list, the
    files that the directory holds now are taken.
    """
    yield path, oid
    if not oid.endswith(".dir"):
        return
    kept = object_path(repo, oid)
    if kept.exists() and not is_damaged(kept, oid):
        for entry in json.loads(kept.read_bytes()):
            yield path / entry["relpath"], entry["md5"]
    else:
        yield from ((file, md5(file)) for file in path.rglob("*") if file.is_file())


def earlier_outputs(repo: Repo) -> Iterator[tuple[Path, str]]:
    """Yield the outputs of earlier runs that the run cache would restore, with the names of their objects."""
    commands = {stage.cmd for stage in repo.index.stages}
    for run in Path(repo.stage_cache.cache_dir).glob("??/*/*"):
        try:
            entry = COMPILED_LOCK_FILE_STAGE_SCHEMA(yaml.safe_load(run.read_bytes()))
        except (yaml.YAMLError, Invalid):
            continue  # DVC removes it itself
        if entry["cmd"] in commands:
            yield from ((Path.cwd() / out["path"], out["md5"]) for out in entry["outs"])


def leftovers(repo: Repo) -> Iterator[Path]:
    """Yield the copies that a killed dvc left beside or in the outputs of this working tree."""
    for folder in sorted({place for out in repo.index.outs for place in (Path(out.fs_path), Path(out.fs_path).parent)}):
        if folder.is_dir() and folder.resolve().is_relative_to(Path.cwd()):
            yield from sorted(path for path in folder.iterdir() if COPY.fullmatch(path.name))


def repair_objects(repo: Repo) -> Iterator[str]:
    """Remove leftovers, move damaged objects aside, have DVC look again at damaged outputs; yield lines.

    Raises:
        UserError: A damaged object lies in a folder where this user may not move it.
    """
    locked = [(Path(out.fs_path), out.hash_info.value) for out in repo.index.outs if out.hash_info]
    outputs = [file for path, oid in locked for file in files(repo, path, oid)]
    names = {oid: path for output in earlier_outputs(repo) for path, oid in files(repo, *output)}
    names |= {oid: path for path, oid in outputs}
    for path, oid in outputs:
        if is_damaged(path, oid):  # no line: it may be of another commit, which DVC knows how to handle
            if path.is_symlink() or path.stat().st_nlink > 1:
                path.unlink()
            else:
                path.touch()
    for path in leftovers(repo):
        path.unlink()
        yield f"repair: removed {os.path.relpath(path)}, which a killed dvc had left"
    for oid, path in names.items():
        kept = object_path(repo, oid)
        if is_damaged(kept, oid):
            aside = kept.with_name(f"{kept.name}.damaged")
            try:
                kept.rename(aside)
            except PermissionError as error:
                raise UserError(
                    f"{kept}: expected {os.path.relpath(path)}, found damage, and cannot move it aside "
                    f"({error.strerror}): ask its owner to remove it"
                ) from None
            yield f"repair: moved the damaged copy of {os.path.relpath(path)} in DVC's cache to {aside}"
            if oid.endswith(".dir"):
                repo.drop_data_index()  # where DVC remembers what it has read in it
