"""Tables as text."""

import re
from collections.abc import Sequence


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal: the first column to the left, the others to the right."""
    first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [[name.ljust(first), *map(str.rjust, cells, others)] for name, *cells in table]
    return "\n".join("  ".join(row).rstrip() for row in rows)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table, the first row of which is its header, as GitHub-flavoured Markdown."""
    header, *rows = table
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|~#$&@])", r"\\\1", text)
