"""Show what the experiments of ``dvc exp run`` changed: a table for each parameter that was varied alone.

    python -m tools.results.sweep

The table is Markdown. Its first row is the last commit, which the experiments started from. The last rows of the seeds'
table are mean, standard deviation (that of a sample, divided by n - 1) and range.
"""

import statistics
import sys
from dataclasses import fields
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from dvc.scm import SCMError

from stages.core.params import Params

PARAMETERS = [f"{section.name}.{entry.name}" for section in fields(Params) for entry in fields(section.type)]  # type: ignore[arg-type]
COLUMNS = {
    "training loss": "train_loss",
    "batch accuracy": "batch.accuracy",
    "validation accuracy": "validation.accuracy",
}
SEED = "train.seed"


def sweeps(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group finished experiments by the one parameter in which they differ from the commit that they started from.

    Args:
        rows: Of ``dvc.api.exp_show``: the working tree, the commit, its experiments.

    Returns:
        For each parameter the rows by its value, that of the commit included; none for experiments that changed more.
    """
    commit, experiments = rows[1], [row for row in rows[2:] if row.get("validation.accuracy") is not None]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in experiments:
        varied = [name for name in PARAMETERS if row[name] != commit[name]]
        if len(varied) == 1:
            groups.setdefault(varied[0], [commit]).append(row)
    return {name: sorted(group, key=lambda row: row[name]) for name, group in groups.items()}


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the experiments that varied the parameter ``name``; for seeds with their spread."""

    def line(*cells: object) -> str:
        return f"| {' | '.join(map(str, cells))} |"

    lines = [line(f"`{name}`", *COLUMNS), line("---", *["---"] * len(COLUMNS))]
    for row in rows:
        value = row[name]
        shown = f"{value:g}" if isinstance(value, float) else value
        lines.append(line(shown, *(f"{row[column]:.4f}" for column in COLUMNS.values())))
    if name == SEED and len(rows) > 1:
        values = [[row[column] for row in rows] for column in COLUMNS.values()]
        lines.append(line("mean", *(f"{statistics.mean(column):.4f}" for column in values)))
        lines.append(line("standard deviation", *(f"{statistics.stdev(column):.4f}" for column in values)))
        lines.append(line("range", *(f"{min(column):.4f} to {max(column):.4f}" for column in values)))
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        tables = [table(name, rows) for name, rows in sweeps(dvc.api.exp_show()).items()]
    except (DvcException, SCMError) as error:
        sys.exit(f"sweep: {' '.join(str(error).split())}")
    if not tables:
        sys.exit(
            "sweep: expected experiments that vary one parameter, found none: dvc exp run --queue -S train.lr=0.2,0.3"
        )
    print("\n\n".join(tables))
