"""Tables as text."""

from collections.abc import Sequence


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal: the first column to the left, the others to the right."""
    first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [[name.ljust(first), *map(str.rjust, cells, others)] for name, *cells in table]
    return "\n".join("  ".join(row).rstrip() for row in rows)
