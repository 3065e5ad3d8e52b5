"""Say whether the difference between two revisions is more than noise, from the predictions that Git holds.

    make compare REV=main                            # main against HEAD
    python -m tools.results.compare OLD [NEW] [--markdown]   # revisions, or names of DVC experiments

No result of the pipeline is random, but which examples the data set has is. Nothing is written; no working tree, DVC
cache or remote is needed.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.core.command import UserError
from stages.core.params import shown
from tools.common.tables import aligned, escaped
from tools.common.tables import markdown as markdown_table
from tools.results.paired import ALPHA, ClassChange, Paired, class_changes, p_text, paired
from tools.results.revisions import BATCH, PREDICTIONS, Revision, Run, check_committed, read_run, resolve

COLUMNS = ("examples", "old", "95 % interval", "new", "95 % interval", "only old correct", "only new correct", "p")


@dataclass(frozen=True)
class Comparison:
    """Two revisions on new's validation batch and on the whole validation set.

    ``classes`` is that of ``class_changes`` on the validation set; ``parameters`` holds (section.key, old, new) where
    the values differ.
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
    labels = (now.actual, was.predicted, now.predicted)
    batch = paired(*(of[now.batch] for of in labels))
    return Comparison(before, after, batch, paired(*labels), class_changes(*labels), changed_parameters(was, now))


def changed_parameters(was: Run, now: Run) -> list[tuple[str, str, str]]:
    """Return (section.key, old, new) of the parameters that differ; one that is missing is ``nothing``."""
    values = [(name, was.parameters.get(name), now.parameters.get(name)) for name in now.parameters | was.parameters]
    return [(name, shown(old), shown(new)) for name, old, new in values if repr(old) != repr(new)]


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
    title, *rest = blocks(comparison)
    parts = [
        escaped(block) if isinstance(block, str) else markdown_table([[escaped(cell) for cell in row] for row in block])
        for block in rest
    ]
    return "\n\n".join([f"### {escaped(str(title))}", *parts])


def main() -> None:
    """Print the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(prog="compare", description="Say whether two revisions differ by more than noise.")
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
    except KeyboardInterrupt:
        print("compare: interrupted", file=sys.stderr)
        sys.exit(130)
    print(markdown(comparison) if arguments.markdown else text(comparison))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a pipe into head ends this quietly
    main()
