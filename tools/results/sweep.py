"""Show what the experiments of ``dvc exp run`` changed: a table for each parameter, or set of them, that was varied.

    python -m tools.results.sweep

The tables are Markdown. They hold the finished experiments that started from the last commit, and that commit. The last
rows of the seeds' table are mean, standard deviation (that of a sample, divided by n - 1) and range. A line below names
each experiment that is in no table, with its state.
"""

import signal
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dvc.repo import Repo
from dvc.repo.experiments.serialize import ExpState
from dvc.utils.flatten import flatten

from stages.core.command import UserError
from tools.common.git import is_shallow, prefix
from tools.common.tables import markdown

METRICS = {
    "training loss": "train_loss",
    "batch accuracy": "batch.accuracy",
    "validation accuracy": "validation.accuracy",
}
FINISHED = "success"
"""DVC's word for it."""
SEED = ("train.seed",)
Row = tuple[tuple[Any, ...], tuple[float, ...]]
"""The values of the varied parameters, and the metrics."""


@dataclass(frozen=True)
class Experiment:
    """An experiment, or the commit: its state, its parameters by section.key, and if it has finished its metrics."""

    name: str
    state: str
    parameters: dict[str, Any]
    metrics: tuple[Any, ...] | None


def read_experiments() -> tuple[Experiment, list[Experiment]]:
    """Ask DVC for the last commit and the experiments that started from it.

    Raises:
        UserError: Git finds no commit here, or DVC cannot answer.
    """
    prefix()
    try:
        with Repo() as repo:
            (commit,) = repo.experiments.show(hide_workspace=True)
        # One that `dvc exp run` ran here has no executor; DVC lists it only once it has finished.
        ranges = [(run.revs[0], run.executor.state if run.executor else FINISHED) for run in commit.experiments or []]
        return read_experiment(commit, FINISHED), [read_experiment(*part) for part in ranges]
    except Exception as error:  # DVC passes on whatever its libraries raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"expected `dvc exp show` to work, found {reason}") from None


def read_experiment(found: ExpState, state: str) -> Experiment:
    """Return what DVC knows of an experiment. Until one has finished, DVC may give it the metrics of its commit."""
    parameters = values(found.data.params) if found.data else {}
    metrics = values(found.data.metrics) if found.data and state == FINISHED else {}
    numbers = tuple(metrics.get(name) for name in METRICS.values())
    complete = all(isinstance(number, float) for number in numbers)
    return Experiment(found.name or found.rev[:7], state, parameters, numbers if complete else None)


def values(files: dict[str, Any]) -> dict[str, Any]:
    """Return the values in DVC's answer for some files by section.key; a file that it could not read has none."""
    return {name: value for file in files.values() for name, value in flatten(file.get("data") or {}).items()}


def varied(experiment: Experiment, commit: Experiment) -> dict[str, Any]:
    """Return the parameters in which an experiment differs from the commit, with its values."""
    names = commit.parameters | experiment.parameters
    pairs = {name: (commit.parameters.get(name), experiment.parameters.get(name)) for name in names}
    return {name: new for name, (old, new) in pairs.items() if new != old}


def sweeps(commit: Experiment, experiments: list[Experiment]) -> dict[tuple[str, ...], list[Row]]:
    """Group the finished experiments by the parameters in which they differ from the commit.

    Returns:
        For each set of parameters its rows, each the parameters' values and the metrics, in the order of the values.
        The commit is one of them; an experiment that was run twice is one row.
    """
    groups: dict[tuple[str, ...], list[Experiment]] = {}
    for experiment in experiments:
        if experiment.metrics is not None and (names := tuple(varied(experiment, commit))):
            groups.setdefault(names, [commit]).append(experiment)
    return {
        names: sorted(
            {(tuple(row.parameters.get(name) for name in names), row.metrics) for row in rows if row.metrics},
            key=lambda row: [order(value) for value in row[0]],
        )
        for names, rows in groups.items()
    }


def order(value: Any) -> tuple[bool, float, str]:
    """Return a key that sorts numbers by size, and after them all else by its text."""
    return (False, value, "") if isinstance(value, int | float) else (True, 0.0, str(value))


def table(names: tuple[str, ...], rows: list[Row]) -> str:
    """Return the Markdown table of the experiments that varied these parameters; for seeds with their spread."""
    lines = [[*(f"`{name}`" for name in names), *METRICS]]
    lines += [[*map(str, values), *(f"{value:.4f}" for value in metrics)] for values, metrics in rows]
    if names == SEED and len(rows) > 1:
        columns = [*zip(*(metrics for _, metrics in rows), strict=True)]
        lines.append(["mean", *(f"{statistics.mean(column):.4f}" for column in columns)])
        lines.append(["standard deviation", *(f"{statistics.stdev(column):.4f}" for column in columns)])
        lines.append(["range", *(f"{min(column):.4f} to {max(column):.4f}" for column in columns)])
    return markdown(lines)


def others(commit: Experiment, experiments: list[Experiment]) -> Iterator[str]:
    """Yield a line for each experiment that is in no table."""
    for experiment in experiments:
        changes = varied(experiment, commit)
        if experiment.metrics is None or not changes:
            state = "finished" + ", without metrics" * (experiment.metrics is None)
            state = state if experiment.state == FINISHED else experiment.state
            what = ", ".join(f"{name}={value}" for name, value in changes.items()) or "no parameter changed"
            yield f"{state}: {experiment.name} ({what})"


def main() -> None:
    """Print the tables and the lines."""
    try:
        commit, experiments = read_experiments()
        if not commit.parameters:
            raise UserError("expected the parameters of the last commit, found none that DVC can read")
        if not experiments:
            shallow = "DVC keeps none in a shallow clone: run `git fetch --unshallow` first: " if is_shallow() else ""
            command = "dvc exp run --queue -S train.lr=0.2,0.3"
            raise UserError(f"expected experiments that started from the last commit, found none: {shallow}{command}")
    except UserError as error:
        sys.exit(f"sweep: {error}")
    tables = [table(names, rows) for names, rows in sweeps(commit, experiments).items()]
    print("\n\n".join([*tables, "\n".join(others(commit, experiments))]).rstrip())


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a pipe into head ends this quietly
    main()
