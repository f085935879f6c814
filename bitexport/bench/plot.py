"""A bench report as a picture: tokens/s over threads, for prefill and decode, with the machine's limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitexport.bench.report import BenchReport, BenchRow
from bitexport.errors import UsageError
from bitexport.system import picture
from bitexport.system.files import write_atomically

_GREY = "0.35"
_MARKERS = "osD^v"

#: If the thread counts differ by this factor or more, both axes are logarithmic.
_WIDE = 16

#: Minimum distance between the percentages of neighbouring points, in points of 1/72 inch.
_LABEL_GAP = 10


def plot(report: BenchReport, path: Path) -> None:
    """Draw the rows of a report: a line for each test and batch, with standard deviations.

    A dashed line is the limit in tokens/s: for prefill the multiply-add peak, for decode the memory's speed,
    for sequences decoded together the lower of the two. Each point is labelled with the percentage of the
    limit that was reached; disturbed points are hollow.

    Args:
        report: the report.
        path: ``.png`` or ``.svg``; replaced if it exists.

    Raises:
        UsageError: there are no rows, or the file's name has another ending.
        OutputError: it cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    kind = picture.kind_of(path)
    panels = {
        title: rows
        for title, prefix in (("Prefill", "pp"), ("Decode", "tg"))
        if (rows := [row for row in report.rows if row.test.startswith(prefix)])
    }
    if not panels:
        raise UsageError(f"{report.path}: nothing was measured, so there is nothing to draw")
    figure, axes = picture.pyplot().subplots(
        1, len(panels), figsize=(0.5 + 5 * len(panels), 5), layout="constrained", squeeze=False
    )
    described = f"{report.parameters / 1e6:,.4g} M parameters, {report.tier} kernels"
    model = report.model.replace(" ?B", "")  # llama.cpp's words for a size that it does not know
    figure.suptitle(f"{model}\n{described}", fontsize=10, parse_math=False)
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        cached = title == "Decode" and report.fits_caches
        note = ": the weights fit the caches, memory does not limit" if cached else ""
        axis.set_title(title + note, loc="left", fontsize=10)
        _scale(axis, rows)
        _measured(axis, rows)
        _limits(axis, rows)
        _explain(axis, rows)
    figure.draw_without_rendering()  # fixes the layout, so that points have positions
    for axis, rows in zip(axes[0], panels.values(), strict=True):
        _percentages(axis, rows)
    write_atomically(path, picture.render(figure, kind))


def _scale(axis: Any, rows: Sequence[BenchRow]) -> None:
    counts = sorted({row.threads for row in rows})
    speeds = [row.tokens_per_second for row in rows]
    highest = max(max(row.tokens_per_second + row.stddev, row.limit_tokens_per_second or 0) for row in rows)
    if counts[-1] >= _WIDE * counts[0]:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set(xlim=(counts[0] / 2, counts[-1] * 2), ylim=(min(speeds) / 2, highest * 1.4))
    else:
        margin = (counts[-1] - counts[0]) * 0.2 or 1  # room for the percentages next to the points
        axis.set(xlim=(counts[0] - margin, counts[-1] + margin), ylim=(0, highest * 1.08))
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set(xlabel="threads", ylabel="tokens/s")
    axis.yaxis.set_major_formatter("{x:,.10g}")
    axis.grid(alpha=0.25)


def _measured(axis: Any, rows: Sequence[BenchRow]) -> None:
    """A line for each test and batch."""
    for label in dict.fromkeys(map(_label, rows)):
        line = sorted((row for row in rows if _label(row) == label), key=lambda row: row.threads)
        style = _style(rows, line[0])
        threads = [row.threads for row in line]
        speeds = [row.tokens_per_second for row in line]
        axis.plot(threads, speeds, linewidth=1.6, markersize=5, label=label, **style)
        axis.errorbar(
            threads, speeds, yerr=[row.stddev for row in line], fmt="none", ecolor=style["color"], capsize=3
        )
        for row in line:
            if row.disturbed:
                hollow = {**style, "markersize": 5, "markerfacecolor": "white", "zorder": 5}
                axis.plot(row.threads, row.tokens_per_second, **hollow)


def _limits(axis: Any, rows: Sequence[BenchRow]) -> None:
    """A dashed line for each batch, in the batch's colour."""
    batches = sorted({row.batch for row in rows})
    for batch in batches:
        limits: dict[int, float] = {}
        for row in rows:
            limit = row.limit_tokens_per_second
            if row.batch == batch and limit is not None:  # the highest over several test sizes
                limits[row.threads] = max(limit, limits.get(row.threads, 0))
        threads: list[float] = sorted(limits)
        heights = [limits[count] for count in sorted(limits)]
        if len(threads) == 1:  # a line needs two ends
            threads, heights = [threads[0] - 1, threads[0] + 1], heights * 2
        colour = f"C{batches.index(batch)}" if len(batches) > 1 else _GREY
        axis.plot(threads, heights, linestyle="--", linewidth=1.3, color=colour, zorder=1)


def _explain(axis: Any, rows: Sequence[BenchRow]) -> None:
    """The legend, below the panel, where it covers no line."""
    axis.plot([], [], linestyle="--", linewidth=1.3, color=_GREY, label=_limit_name(rows))
    if any(row.disturbed for row in rows):
        axis.plot([], [], "o", color=_GREY, markerfacecolor="white", label="disturbed: limits moved")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=9)


def _limit_name(rows: Sequence[BenchRow]) -> str:
    if all(row.percent_of_limit is None for row in rows):
        return "no limit known: kernels without a multiply-add instruction"
    memory = any(row.memory_read_gbps is not None for row in rows)
    peak = any(row.multiply_add_gps is not None for row in rows)
    names = ["memory speed"] * memory + ["multiply-add peak"] * peak
    return f"100%: {'lower of ' * (memory and peak)}{' and '.join(names)}"


def _percentages(axis: Any, rows: Sequence[BenchRow]) -> None:
    """Next to each point, on the outer side; moved up if the one below is too close."""
    pixels = axis.figure.dpi / 72  # of a point
    counts = sorted({row.threads for row in rows})
    for count in counts:
        left = count == counts[0] and len(counts) > 1
        inside = count not in (counts[0], counts[-1])
        lowest = float("-inf")
        for row in sorted(rows, key=lambda row: row.tokens_per_second):
            if row.threads != count or row.percent_of_limit is None:
                continue
            point = (count, row.tokens_per_second)
            place = float(axis.transData.transform(point)[1]) / pixels
            height = max(place - 9 if inside else place, lowest)  # inside: below the line that rises
            lowest = height + _LABEL_GAP
            axis.annotate(
                f"{row.percent_of_limit:.0f}%", point, xytext=(-7 if left else 7, height - place),
                textcoords="offset points", ha="right" if left else "left", va="center", fontsize=8,
                color=_style(rows, row)["color"],
                bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            )  # fmt: skip


def _style(rows: Sequence[BenchRow], row: BenchRow) -> dict[str, Any]:
    """Colour: the batch, or the test if there is only one batch. Marker: the test."""
    batches = sorted({row.batch for row in rows})
    tests = list(dict.fromkeys(row.test for row in rows))
    test = tests.index(row.test)
    colour = batches.index(row.batch) if len(batches) > 1 else test
    return {"color": f"C{colour}", "marker": _MARKERS[test % len(_MARKERS)]}


def _label(row: BenchRow) -> str:
    return row.test if row.batch == 1 else f"{row.test} x {row.batch}"
