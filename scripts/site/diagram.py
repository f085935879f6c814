"""Draws the Mermaid flowchart of docs/architecture.md as SVG: the site needs no script from elsewhere.

GitHub draws Mermaid by itself. This knows only what scripts/architecture_diagram.py writes: boxes in order,
``a --> b``, ``a -. text .-> b`` and ``a[text]``.
"""

from __future__ import annotations

import re
from html import escape

_BLOCK = re.compile(r"^```mermaid\nflowchart TD\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NODE = r"(\w+)(?:\[([^\]]+)\])?"
_EDGE = re.compile(rf"{_NODE} (?:-->|-\. (?P<text>\w+) \.->) {_NODE}")

WIDTH, HEIGHT = 740, 66  # of the picture; of a row
BOX = 26


def replace_mermaid(markdown: str) -> str:
    """A page with each flowchart drawn."""
    return _BLOCK.sub(lambda found: f'<div class="layers">{drawn(found[1])}</div>', markdown)


def drawn(flowchart: str) -> str:
    """The flowchart as one SVG element.

    A box is as high as it can be below all that point to it.

    Raises:
        ValueError: a line that is neither a box nor an arrow.
    """
    labels: dict[str, str] = {}
    edges: list[tuple[str, str, str]] = []
    for line in flowchart.splitlines():
        edge, box = _EDGE.fullmatch(line.strip()), re.fullmatch(_NODE, line.strip())
        if edge:
            source, target = (edge[1], edge[2]), (edge[4], edge[5])
            edges.append((source[0], target[0], edge["text"] or ""))
        elif box:
            source = target = (box[1], box[2])
        else:
            raise ValueError(f"a flowchart with {line.strip()!r}; expected a box or an arrow")
        for name, label in (source, target):
            if label or name not in labels:
                labels[name] = label or name
    return _svg(labels, edges, _rows(list(labels), edges))


def _rows(names: list[str], edges: list[tuple[str, str, str]]) -> list[list[str]]:
    depth = dict.fromkeys(names, 0)
    for _ in names:
        for source, target, _text in edges:
            depth[target] = max(depth[target], depth[source] + 1)
    return [[name for name in names if depth[name] == row] for row in range(max(depth.values()) + 1)]


def _svg(labels: dict[str, str], edges: list[tuple[str, str, str]], rows: list[list[str]]) -> str:
    middle: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        # each box near the middle of those that point to it
        above = {name: [middle[s][0] for s, t, _ in edges if t == name and s in middle] for name in row}
        row.sort(key=lambda name: sum(above[name]) / len(above[name]) if above[name] else 0)
        widths = [_width(labels[name]) for name in row]
        gap = (WIDTH - sum(widths)) / (len(row) + 1)
        left = gap
        for name, width in zip(row, widths, strict=True):
            middle[name] = (left + width / 2, number * HEIGHT + BOX)
            left += width + gap
    height = len(rows) * HEIGHT
    names = ", ".join(labels.values())
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(names)}">', _ARROW]
    for source, target, text in edges:
        (x1, y1), (x2, y2) = middle[source], middle[target]
        start, end = y1 + BOX / 2, y2 - BOX / 2 - 3
        bend = (end - start) / 2
        curve = (
            f"M{x1:.0f} {start:.0f}C{x1:.0f} {start + bend:.0f} {x2:.0f} {end - bend:.0f} {x2:.0f} {end:.0f}"
        )
        kind = ' class="dashed"' if text else ""
        parts.append(f'<path{kind} d="{curve}" marker-end="url(#arrow)"/>')
        if text:
            parts.append(
                f'<text x="{(x1 + x2) / 2 + 24:.0f}" y="{(start + end) / 2:.0f}">{escape(text)}</text>'
            )
    for name, (x, y) in middle.items():
        width = _width(labels[name])
        kind = ' class="native"' if labels[name] != name else ""
        parts.append(
            f'<g{kind}><rect x="{x - width / 2:.0f}" y="{y - BOX / 2:.0f}" '
            f'width="{width:.0f}" height="{BOX}" rx="4"/>'
            f'<text x="{x:.0f}" y="{y:.0f}">{escape(labels[name])}</text></g>'
        )
    return "".join(parts) + "</svg>"


def _width(label: str) -> float:
    return 7 * len(label) + 16


_ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" '
    'orient="auto">'
    '<path d="M0 0L8 4L0 8z"/></marker></defs>'
)
