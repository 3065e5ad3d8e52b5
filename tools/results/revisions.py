"""What Git holds of a run: the predictions and parameters of a commit. No working tree, cache or remote is needed."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.params import parse_yaml, shown
from tools.common.git import git, is_shallow, prefix, says

PREDICTIONS = "plots/predictions.csv"
PARAMS = "params.yaml"
BATCH = ("evaluate.batch_size", "evaluate.batch_index")


@dataclass(frozen=True)
class Revision:
    """A commit, and the name under which the user asked for it."""

    name: str
    commit: str
    short_hash: str

    def __str__(self) -> str:
        name = shown(self.name, quoted=False)
        return self.short_hash if self.commit.startswith(name) else f"{name} ({self.short_hash})"


class Run(NamedTuple):
    """What Git holds of a run: labels (n,), predicted labels (n,), parameters by section.key, the validation batch."""

    actual: NDArray[np.int64]
    predicted: NDArray[np.int64]
    parameters: dict[str, Any]
    batch: slice


def resolve(name: str) -> Revision:
    """Find the one commit, or else the one DVC experiment, of this name.

    Raises:
        UserError: There is none, or several experiments have the name, or Git cannot read the repository.
    """
    prefix()
    done = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    commits = {done.stdout.decode().strip()}
    if done.returncode or done.stdout.startswith(b"^"):  # ^main is the commits outside main
        experiments = git("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}")
        commits = set(experiments.stdout.decode().split())
    if len(commits) > 1:
        found = f"found {len(commits)}: give a hash: {', '.join(sorted(commits))}"
        raise UserError(f"{shown(name)}: expected one experiment of this name, {found}")
    if not commits:
        expected = f"{shown(name)}: expected a commit, branch, tag or DVC experiment, found none of this name"
        if is_shallow():
            raise UserError(f"{expected} in this shallow clone: run `git fetch --unshallow`")
        raise UserError(f"{expected}: run `git fetch`, or correct the spelling")
    commit = commits.pop()
    return Revision(name, commit, git("rev-parse", "--short", commit).stdout.decode().strip())


def read_run(revision: Revision) -> Run:
    """Read predictions and parameters of a revision; raise ``UserError`` if they are missing or malformed."""
    actual, predicted = read_file(revision, PREDICTIONS, parse_predictions)
    parameters = read_file(revision, PARAMS, parse_parameters)
    size, index = (parameters.get(name) for name in BATCH)
    if not (type(size) is type(index) is int and size > 0 and 0 <= index * size < len(actual)):
        raise UserError(
            f"{revision}: {PARAMS}: expected {' and '.join(BATCH)} of one of the batches of {len(actual)} examples, "
            f"found {shown(size)} and {shown(index)}"
        )
    return Run(actual, predicted, parameters, slice(index * size, (index + 1) * size))


def read_file(revision: Revision, path: str, parse: Callable[[str], Any]) -> Any:
    """Return what ``parse`` makes of the text of a file in a revision; its errors become a ``UserError``."""
    place = f"{prefix()}{path}"
    done = git("cat-file", "blob", f"{revision.commit}:{place}")
    remedy = "name a revision in which the results of `dvc repro` are committed"
    if done.returncode:
        listed = git("ls-tree", "--full-tree", revision.commit, place).stdout
        found = f"but {says(done)}" if listed else "found none"
        raise UserError(f"{revision}: expected {place} in it, {found}: {remedy}")
    try:
        return parse(done.stdout.decode())
    except (ValueError, csv.Error, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{revision}: expected {place} as the pipeline writes it, but {reason}: {remedy}") from None


def parse_predictions(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return actual and predicted labels (n,), n > 0."""
    header, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    if header != ["actual", "predicted"] or not rows:
        raise ValueError(f"found the columns {shown(','.join(header))} and {len(rows)} rows")
    label = {name: k for k, name in enumerate(CLASS_NAMES)}
    for line, row in enumerate(rows, start=2):
        if len(row) != 2 or not label.keys() >= set(row):
            raise ValueError(f"found no two classes in line {line}: {shown(','.join(row))}")
    actual, predicted = np.array([[label[a], label[p]] for a, p in rows]).T
    return actual, predicted


def parse_parameters(text: str) -> dict[str, Any]:
    """Return the parameters by section.key."""
    document = parse_yaml(text)
    if not isinstance(document, dict) or not all(isinstance(section, dict) for section in document.values()):
        raise ValueError("found no sections with keys")
    return {f"{name}.{key}": value for name, section in document.items() for key, value in section.items()}


def check_committed() -> None:
    """Raise ``UserError`` if the working tree, where there is one, has other results or parameters than HEAD."""
    if git("rev-parse", "--is-inside-work-tree").stdout != b"true\n":
        return
    status = {path: git("status", "--porcelain", "--untracked-files=no", "--", path) for path in (PREDICTIONS, PARAMS)}
    for path, done in status.items():
        if done.returncode:
            raise UserError(f"{path}: expected to compare it with HEAD, but {says(done)}")
    changed = [path for path, done in status.items() if done.stdout]
    if changed:
        raise UserError(
            f"{' and '.join(changed)}: expected as in HEAD, found changed: the comparison is between commits: commit "
            "first, or give tools.results.compare both revisions"
        )
