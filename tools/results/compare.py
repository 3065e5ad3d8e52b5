"""Say whether the difference between two revisions is more than noise, from the predictions that Git holds.

    make compare REV=main                            # main against HEAD
    python -m tools.results.compare OLD [NEW] [--markdown]   # revisions, or names of DVC experiments

No result of the pipeline is random, but which examples the data set has is. The examples that only one of two equally
good models gets right fall to either like tosses of a coin: the exact form of the test of Q. McNemar (Psychometrika 12,
1947, pages 153-157). Of ten classes some differ by chance: their p-values are adjusted as by S. Holm (Scandinavian
Journal of Statistics 6, 1979, pages 65-70). Nothing is written; no working tree, DVC cache or remote is needed.
"""

import argparse
import csv
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.command import UserError
from stages.core.fashion_mnist import CLASS_NAMES
from stages.core.params import parse_yaml, shown
from stages.model.metrics import wilson_interval
from tools.common.git import git, says
from tools.common.tables import aligned

PREDICTIONS = "plots/predictions.csv"
PARAMS = "params.yaml"
BATCH = ("evaluate.batch_size", "evaluate.batch_index")
ALPHA = 0.05
"""The level of significance: what has a smaller p-value is called real."""
COLUMNS = ("examples", "old", "95 % interval", "new", "95 % interval", "only old right", "only new right", "p")


@dataclass(frozen=True)
class Revision:
    """A commit, and the name it was asked for by."""

    name: str
    commit: str
    short_hash: str

    def __str__(self) -> str:
        name = shown(self.name, quoted=False)
        return self.short_hash if self.commit.startswith(name) else f"{name} ({self.short_hash})"


@dataclass(frozen=True)
class Paired:
    """What two models got right of the same examples.

    ``differing`` counts the examples with two different predictions, both wrong ones included; ``p_value`` is that of
    McNemar's exact two-sided test on ``only_old`` and ``only_new``.
    """

    examples: int
    old_correct: int
    new_correct: int
    only_old: int
    only_new: int
    differing: int
    p_value: float

    @property
    def old_accuracy(self) -> float:
        """What share of the examples old got right."""
        return self.old_correct / self.examples

    @property
    def new_accuracy(self) -> float:
        """What share of the examples new got right."""
        return self.new_correct / self.examples

    @property
    def old_interval(self) -> tuple[float, float]:
        """The 95 % interval of old's accuracy."""
        return wilson_interval(self.old_correct, self.examples)

    @property
    def new_interval(self) -> tuple[float, float]:
        """The 95 % interval of new's accuracy."""
        return wilson_interval(self.new_correct, self.examples)

    @property
    def verdict(self) -> str:
        """What the numbers mean, as a clause."""
        if not self.differing:
            return "identical predictions"
        if self.p_value < ALPHA:
            gain = self.new_accuracy - self.old_accuracy
            direction = "better" if gain > 0 else "worse"
            return f"a real difference (p-value {p_text(self.p_value)}): new is {points(abs(gain))} {direction}"
        low, high = self.new_interval
        return (
            f"within noise (p-value {p_text(self.p_value)}): one of {self.examples} examples is "
            f"{points(1 / self.examples)}, the 95 % interval about {points((high - low) / 2)} either way"
        )


@dataclass(frozen=True)
class ClassChange:
    """What two models got right of a class, and the p-value adjusted for the number of classes compared."""

    name: str
    paired: Paired
    adjusted_p_value: float

    @property
    def moved(self) -> bool:
        """Whether the difference is real."""
        return self.adjusted_p_value < ALPHA


@dataclass(frozen=True)
class Comparison:
    """Two revisions on new's validation batch and on the whole validation set.

    ``classes`` holds the classes of the validation set with an example that only one of the two got right, by the size
    of the change of accuracy, largest first; ``parameters`` holds (section.key, old, new) where the values differ.
    """

    old: Revision
    new: Revision
    batch: Paired
    validation: Paired
    classes: list[ClassChange]
    parameters: list[tuple[str, str, str]]

    @property
    def batches_differ(self) -> bool:
        """Whether old's own validation batch is another one."""
        return any(name in BATCH for name, _, _ in self.parameters)


class Run(NamedTuple):
    """What Git holds of a run: labels (n,), predicted labels (n,), parameters by section.key, the validation batch."""

    actual: NDArray[np.int64]
    predicted: NDArray[np.int64]
    parameters: dict[str, Any]
    batch: slice


def compare(old: str, new: str = "HEAD") -> Comparison:
    """Compare the committed predictions of two revisions, each a commit by Git's rules or else a DVC experiment.

    Raises:
        UserError: A revision is unknown, its predictions or parameters are missing or malformed, or the revisions were
            not validated on the same examples in the same order.
    """
    before, after = resolve(old), resolve(new)
    was, now = read_run(before), read_run(after)
    if len(was.actual) != len(now.actual):
        counts = f"{len(was.actual)} in {before} and {len(now.actual)} in {after}"
        raise UserError(f"{PREDICTIONS}: expected the same examples in both revisions, found {counts}")
    if (others := np.flatnonzero(was.actual != now.actual)).size:
        raise UserError(
            f"{PREDICTIONS}: expected the same examples in {before} and {after}, found two classes in line "
            f"{others[0] + 2}: compare revisions with the same data set in the same order"
        )

    def on(chosen: slice | NDArray[np.bool_]) -> Paired:
        return paired(now.actual[chosen], was.predicted[chosen], now.predicted[chosen])

    of_class = {name: on(of) for k, name in enumerate(CLASS_NAMES) if (of := now.actual == k).any()}
    # A class without a coin to toss cannot differ by chance: Holm's procedure need not count it.
    of_class = {name: pair for name, pair in of_class.items() if pair.only_old or pair.only_new}
    adjusted = holm([pair.p_value for pair in of_class.values()])
    classes = [ClassChange(name, pair, p) for (name, pair), p in zip(of_class.items(), adjusted, strict=True)]
    classes.sort(key=lambda change: -abs(change.paired.new_accuracy - change.paired.old_accuracy))
    values = [(name, was.parameters.get(name), now.parameters.get(name)) for name in now.parameters | was.parameters]
    parameters = [(name, shown(a), shown(b)) for name, a, b in values if repr(a) != repr(b)]
    return Comparison(before, after, on(now.batch), on(slice(None)), classes, parameters)


def paired(actual: NDArray[np.int64], old: NDArray[np.int64], new: NDArray[np.int64]) -> Paired:
    """Compare two models' predicted labels (n,) with the labels (n,), n > 0."""
    old_right, new_right = old == actual, new == actual
    only_old, only_new = int((old_right & ~new_right).sum()), int((new_right & ~old_right).sum())
    return Paired(
        examples=len(actual),
        old_correct=int(old_right.sum()),
        new_correct=int(new_right.sum()),
        only_old=only_old,
        only_new=only_new,
        differing=int((old != new).sum()),
        p_value=mcnemar(only_old, only_new),
    )


def mcnemar(only_old: int, only_new: int) -> float:
    """Return the exact p-value: the probability that as many tosses of a coin fall at least as unequally."""
    if only_old == only_new:
        return 1.0
    from scipy.stats import binomtest  # here, as it takes longer than all the rest

    return float(binomtest(only_old, only_old + only_new).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values in the same order: the least of m times m, the next times m - 1; none falls."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def resolve(name: str) -> Revision:
    """Find the one commit, or else the one DVC experiment, of this name; raise ``UserError`` if there is none."""
    done = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    commits = {done.stdout.decode().strip()}
    if done.returncode or done.stdout.startswith(b"^"):  # ^main is the commits outside main
        experiments = git("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}")
        commits = set(experiments.stdout.decode().split())
    if len(commits) != 1:
        raise UserError(f"{shown(name)}: {why_unresolved(sorted(commits))}")
    commit = commits.pop()
    return Revision(name, commit, git("rev-parse", "--short", commit).stdout.decode().strip())


def why_unresolved(commits: list[str]) -> str:
    """Say why a name does not stand for one commit, and what to do."""
    if commits:
        return f"expected one experiment of this name, found {len(commits)}: give a hash: {', '.join(commits)}"
    if (repository := git("rev-parse", "--git-dir")).returncode:
        return f"expected a Git repository, but {says(repository)}: run from the top of the repository"
    if not git("rev-list", "--max-count=1", "--all").stdout:
        return "expected a commit, found a repository without any: commit the results first"
    expected = "expected a commit, branch, tag or DVC experiment, found none of this name"
    if git("rev-parse", "--is-shallow-repository").stdout == b"true\n":
        return f"{expected} in this shallow clone: run `git fetch --unshallow`"
    return f"{expected}: run `git fetch`, or correct the spelling"


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
    """Return what ``parse`` makes of the text of a file in a revision; its ``ValueError`` becomes a ``UserError``."""
    done = git("cat-file", "blob", f"{revision.commit}:{path}")
    remedy = "name a revision in which the results of `dvc repro` are committed"
    if done.returncode:
        listed = git("ls-tree", "--full-tree", revision.commit, path).stdout
        raise UserError(
            f"{revision}: expected {path} in it, {f'but {says(done)}' if listed else 'found none'}: {remedy}"
        )
    try:
        return parse(done.stdout.decode())
    except (ValueError, csv.Error, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{revision}: expected {path} as the pipeline writes it, but {reason}: {remedy}") from None


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
    paths = [f":(top){path}" for path in (PREDICTIONS, PARAMS)]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *paths).stdout.decode().splitlines()
    if changed:
        names = " and ".join(line[3:] for line in changed)
        raise UserError(
            f"{names}: expected as in HEAD, found changed: the comparison is between commits: commit first, "
            "or give tools.results.compare both revisions"
        )


def points(share: float) -> str:
    """Write a share in percentage points, to two significant digits at most."""
    return f"{float(f'{100 * share:.2g}'):g} points"


def p_text(p_value: float) -> str:
    """Write a p-value to three significant digits; the smallest have underflowed."""
    return f"{p_value:.3g}" if p_value > 1e-300 else "<1e-300"


def blocks(comparison: Comparison) -> Iterator[str | list[tuple[str, ...]]]:
    """Yield title, sentences and tables, the first row of a table being its header."""
    yield f"Old: {comparison.old}, new: {comparison.new}"
    if comparison.parameters:
        yield [("parameter", "old", "new"), *comparison.parameters]
    else:
        yield "The parameters are the same."
    if comparison.batches_differ:
        yield "The revisions have different validation batches: both are compared on new's."
    sets = {"validation batch": comparison.batch, "validation set": comparison.validation}
    yield [("", *COLUMNS), *((name, *cells(pair)) for name, pair in sets.items())]
    yield from (f"{name.capitalize()}: {pair.verdict}." for name, pair in sets.items())
    if comparison.classes:
        changes = [
            (change.name, *cells(change.paired), p_text(change.adjusted_p_value)) for change in comparison.classes
        ]
        yield [("class", *COLUMNS, "adjusted p"), *changes]
        moved = ", ".join(change.name for change in comparison.classes if change.moved) or "none"
        yield f"Classes that moved: {moved} (adjusted p below {ALPHA}; {len(changes)} classes compared)."


def cells(pair: Paired) -> tuple[str, ...]:
    """Return what stands under ``COLUMNS``."""
    old, new = (f"{low:.4f} to {high:.4f}" for low, high in (pair.old_interval, pair.new_interval))
    accuracies = f"{pair.old_accuracy:.4f}", old, f"{pair.new_accuracy:.4f}", new
    return str(pair.examples), *accuracies, str(pair.only_old), str(pair.only_new), p_text(pair.p_value)


def text(comparison: Comparison) -> str:
    """Return the comparison as text for a terminal."""
    return "\n\n".join(block if isinstance(block, str) else aligned(block) for block in blocks(comparison))


def markdown(comparison: Comparison) -> str:
    """Return the comparison as GitHub-flavoured Markdown, in which names and values mean only themselves."""

    def escaped(content: str) -> str:
        return re.sub(r"([\\`*_\[\]<>|~#$&@])", r"\\\1", content)

    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def table(rows: list[tuple[str, ...]]) -> str:
        header, *body = [row([escaped(cell) for cell in cells]) for cells in rows]
        return "\n".join([header, row(["---", *["---:"] * (len(rows[0]) - 1)]), *body])

    title, *rest = blocks(comparison)
    return "\n\n".join([f"### {escaped(str(title))}", *(escaped(b) if isinstance(b, str) else table(b) for b in rest)])


def main() -> None:
    """Print the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(prog="compare", description=__doc__.splitlines()[0])
    parser.add_argument("old", metavar="OLD", help="a revision or the name of a DVC experiment")
    parser.add_argument("new", metavar="NEW", nargs="?", help="the same; default: HEAD")
    parser.add_argument("--markdown", action="store_true", help="write GitHub-flavoured Markdown")
    arguments = parser.parse_args()
    try:
        if arguments.new is None:
            check_committed()
            comparison = compare(arguments.old)
        else:
            comparison = compare(arguments.old, arguments.new)
    except UserError as error:
        sys.exit(f"compare: {error}")
    print(markdown(comparison) if arguments.markdown else text(comparison))


if __name__ == "__main__":
    main()
