"""Figures by row and column, one value for each run, and targets, as tables."""

import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tools.common.tables import aligned

Figures = dict[str, dict[str, list[float]]]
"""Of a part: row, column with its unit, one value for each run."""


class Target(NamedTuple):
    """A promise: a measured figure and the limit that it may not pass, or ``at_least`` must reach."""

    text: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the measured figure keeps the promise."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def record(figures: Figures, row: str, values: Mapping[str, float]) -> None:
    """Add the values of a run to a row, each in its column."""
    for column, value in values.items():
        figures.setdefault(row, {}).setdefault(column, []).append(value)


def number(value: float) -> str:
    """Write a figure to three significant digits, or all digits of its whole part."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(values: list[float]) -> str:
    """Write the median and the range, or the one value; nothing for none."""
    if not values:
        return ""
    median, low, high = map(number, (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low} to {high})"


def figures_table(part: str, figures: Figures) -> str:
    """Return the table of a part; a cell is empty where a row has no such figure."""
    columns = list(dict.fromkeys(column for row in figures.values() for column in row))
    rows = ([name, *(cell(row.get(column, [])) for column in columns)] for name, row in figures.items())
    return aligned([[part, *columns], *rows])


def targets_table(targets: Iterable[Target]) -> str:
    """Return the table of targets."""
    rows = (
        [t.text, number(t.measured), f"{'>=' if t.at_least else '<='} {t.limit:g}", "met" if t.met else "missed"]
        for t in targets
    )
    return aligned([["target", "measured", "limit", "verdict"], *rows])
