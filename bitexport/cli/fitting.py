"""Fits tables to a width: text is divided where it can be, numbers are not, and no column is lost."""

from __future__ import annotations

import re
from collections.abc import Sequence

# rich draws a column with a space on each side, and something between two columns
_PADDING = 3

# Where a text may be divided, the best places first: between words, and behind marks within a name.
_PLACES = tuple(
    re.compile(pattern)
    for pattern in (r"\S+\s*|\s+", r"[^./,:;]*[./,:;]+\s*|[^./,:;]+", r"[^_-]*[_-]+|[^_-]+")
)

#: A column of text does not become narrower than this.
NARROWEST = 8


def table_width(widths: Sequence[int]) -> int:
    """The width of a table with columns of these widths."""
    return sum(widths) + _PADDING * len(widths) + 1


def column_widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], fixed: Sequence[bool], width: int
) -> list[int]:
    """The widths of a table's columns; the widest columns of text become narrower until the table fits.

    Args:
        columns: headings.
        rows: cells.
        fixed: whether a column stays as wide as its longest cell.
        width: the width to fit, which the fixed columns may exceed.
    """
    found = [
        max(_length(cell) for cell in (column, *(row[index] for row in rows)))
        for index, column in enumerate(columns)
    ]
    while table_width(found) > width:
        texts = [index for index, size in enumerate(found) if not fixed[index] and size > NARROWEST]
        if not texts:
            break
        found[max(texts, key=lambda index: found[index])] -= 1
    return [max(size, 1) for size in found]


def _length(text: str) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, text.split("\n")), default=0)


def broken(text: str, width: int) -> str:
    """The text with line feeds, so that each line fits: between words, or behind a mark within a name."""
    if _length(text) <= width:
        return text
    lines = [""]
    for piece in _pieces(text, width, 0):
        if lines[-1] and _length(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _pieces(text: str, width: int, level: int) -> list[str]:
    """Parts of the text between which a line may end; one that fits a line is not divided further."""
    found: list[str] = []
    for piece in _PLACES[level].findall(text):
        if _length(piece.rstrip()) > width and level + 1 < len(_PLACES):
            found += _pieces(piece, width, level + 1)
        else:
            found.append(piece)
    return found
