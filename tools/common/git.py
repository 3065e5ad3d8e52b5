"""Git, as the tools ask it: commands that read, and the reason that Git gives when one fails."""

import subprocess

from stages.core.command import UserError


def git(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a Git command that reads; without optional locks, status does not even refresh the index."""
    try:
        return subprocess.run(["git", "--no-optional-locks", *words], capture_output=True)
    except FileNotFoundError:
        raise UserError("expected git on PATH, found none: install it") from None


def says(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return what Git gave as the reason of its failure, on one line."""
    return f"git says: {done.stderr.decode(errors='replace').partition(chr(10))[0]}"
