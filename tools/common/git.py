"""Git, as the tools ask it: commands that read, and Git's own reason when one fails."""

import subprocess

from stages.core.command import UserError


def git(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a Git command that reads; without optional locks, status does not even refresh the index."""
    try:
        return subprocess.run(["git", "--no-optional-locks", *words], capture_output=True)
    except FileNotFoundError:
        raise UserError("expected git on PATH, found none: install it") from None


def says(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return what Git printed about its failure, its remedies included, on one line."""
    return f"git says: {' '.join(done.stderr.decode(errors='replace').split())}"


def prefix() -> str:
    """Return the path from the top of the repository to this folder, ``""`` or one that ends in a slash.

    A file of the project in a commit is ``<commit>:<prefix><path>``: its folder need not be the top of the repository.

    Raises:
        UserError: Git finds no repository here that it may read, or the repository has no commit.
    """
    done = git("rev-parse", "--show-prefix")
    if done.returncode:
        raise UserError(f"expected a Git repository, but {says(done)}")
    if not git("rev-list", "--max-count=1", "--all").stdout:
        raise UserError("expected a commit, found a repository without any: commit the results first")
    return done.stdout.decode().removesuffix("\n")


def is_shallow() -> bool:
    """Return whether the clone lacks older commits; DVC keeps no experiment in such a clone."""
    return git("rev-parse", "--is-shallow-repository").stdout == b"true\n"
