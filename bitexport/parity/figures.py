"""The figures of a parity run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bitexport.parity.layers.result import LayersReport, StepResult
from bitexport.system import picture

if TYPE_CHECKING:
    from bitexport.parity.details import LogitDetails

# Where zero is drawn on a logarithmic axis.
_ZERO_GAP, _ZERO_STEPS = 1e-16, 1e-6
_PLAIN, _ALIGNED, _ISOLATED, _BAD = "#b0b0b0", "#1f77b4", "#2a9d55", "#d62728"


def depth(report: LayersReport, kind: str = "png") -> bytes:
    """Plot 1 - cosine of every step against depth, and below it the difference of each isolated step.

    The latter as a fraction of the step's own tolerance, which is not the same for all.

    Args:
        kind: ``"png"`` or ``"svg"``.
    """
    figure, (above, below) = picture.pyplot().subplots(
        2, 1, figsize=(10, 6.4), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    places = range(len(report.steps))
    _lines(above, report, places)
    isolated = [max(step.isolated.excess, _ZERO_STEPS) for step in report.steps]
    # NaN and infinity cannot be drawn; show them above everything else
    top = max([value for value in isolated if np.isfinite(value)] + [1.0])
    isolated = [value if np.isfinite(value) else top * 10 for value in isolated]
    colours = [_BAD if step.diverged else _ISOLATED for step in report.steps]
    below.scatter(places, isolated, c=colours, s=10, zorder=3)
    below.axhline(1, color=_BAD, linewidth=1, linestyle="--", zorder=2)
    below.annotate(
        "tolerance", (1, 1), xycoords=("axes fraction", "data"), xytext=(-4, 3),
        textcoords="offset points", ha="right", color=_BAD, fontsize=8,
    )  # fmt: skip
    below.set(
        yscale="log",
        ylim=(_ZERO_STEPS / 3, max([*isolated, 1]) * 8),
        ylabel="difference on the same input,\nfraction of its tolerance",
    )
    _mark(below, report, isolated)
    _blocks(above, below, report.steps)
    return picture.render(figure, kind)


def _lines(axis: Any, report: LayersReport, places: range) -> None:
    plain = [max(step.plain.cosine_gap, _ZERO_GAP) for step in report.steps]
    axis.plot(places, plain, color=_PLAIN, linewidth=1.2, label="plain: both sides unmodified")
    if any(step.aligned for step in report.steps):
        aligned = [
            max(step.aligned.cosine_gap, _ZERO_GAP) if step.aligned else np.nan for step in report.steps
        ]
        axis.plot(places, aligned, color=_ALIGNED, linewidth=1.4, label="aligned: PyTorch rounds as C++ did")
    axis.set(yscale="log", ylabel="1 - smallest cosine,\nfrom the input tokens")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)
    first = report.first
    axis.set_title(
        "No step diverges" if first is None else f"First step that diverges: {first}",
        color="black" if first is None else _BAD,
        loc="left",
        fontsize=11,
    )


def _mark(axis: Any, report: LayersReport, isolated: list[float]) -> None:
    """Write the name of the first step that diverges next to its point."""
    if not report.diverged:
        return
    at = report.steps.index(report.diverged[0])
    right = at < len(isolated) * 0.8
    axis.annotate(
        report.diverged[0].name, (at, isolated[at]), xytext=(8 if right else -8, 0),
        textcoords="offset points", ha="left" if right else "right", va="center",
        color=_BAD, fontsize=9, fontweight="bold",
    )  # fmt: skip


def _blocks(above: Any, below: Any, steps: list[StepResult]) -> None:
    """Shade every other block, and label blocks on the axis."""
    spans: dict[int, list[int]] = {}
    for place, step in enumerate(steps):
        if step.layer is not None:
            spans.setdefault(step.layer, []).append(place)
    for layer, found in spans.items():
        if layer % 2 == 0:
            for axis in (above, below):
                axis.axvspan(found[0] - 0.5, found[-1] + 0.5, color="0.96", zorder=0)
    stride = max(1, -(-len(spans) // 16))
    shown = [layer for layer in spans if layer % stride == 0]
    below.set_xticks([(spans[layer][0] + spans[layer][-1]) / 2 for layer in shown], [str(n) for n in shown])
    below.set_xlabel("block")
    below.set_xlim(-1, len(steps))
    below.grid(axis="y", alpha=0.3)
    below.tick_params(axis="x", length=0)
    above.tick_params(axis="x", length=0)


def scatter(details: LogitDetails) -> bytes:
    """Plot sampled C++ logits against Python's, as PNG."""
    python, cpp = np.concatenate(details.pairs, axis=1)
    figure, axis = picture.pyplot().subplots(figsize=(5, 5), layout="constrained")
    good = np.isfinite(python) & np.isfinite(cpp)
    ends = [0.0, 1.0]
    if good.any():
        ends = [
            float(min(python[good].min(), cpp[good].min())),
            float(max(python[good].max(), cpp[good].max())),
        ]
    axis.plot(ends, ends, color="0.7", linewidth=1, zorder=1)
    axis.scatter(python[good], cpp[good], s=5, alpha=0.35, color=_ALIGNED, linewidths=0, zorder=2)
    axis.set(xlabel="logit, Python", ylabel="logit, C++", aspect="equal")
    axis.grid(alpha=0.3)
    return picture.render(figure, "png")
