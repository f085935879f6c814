"""The loss curve of a training run as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitexport.errors import OutputError
from bitexport.system import picture
from bitexport.system.files import write_atomically

Line = dict[str, Any]


def read_log(path: Path) -> list[Line]:
    """The lines of a run's log.jsonl, in order; an incomplete last line (a full disk) is ignored."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in complete.splitlines()]


def plot(log: Path, path: Path) -> None:
    """Draw training and held-out loss (nats per token) and the learning rate over millions of tokens.

    Args:
        log: a run's log.jsonl.
        path: ``.png`` or ``.svg``; an existing file is replaced.

    Raises:
        OutputError: the log cannot be read or is empty, or the picture cannot be written.
    """
    lines = _read_nonempty(log)
    has_health = any("zero_trits" in line for line in lines)
    rows = 2 if has_health else 1
    figure, axes = picture.pyplot().subplots(
        rows, 1, figsize=(8, 4.5 if rows == 1 else 7), layout="constrained", squeeze=False, sharex=True
    )
    loss_axis = axes[0, 0]
    if has_health:
        _draw_health(axes[1, 0], lines)
    rate_axis = loss_axis.twinx()
    _draw(rate_axis, lines, "learning_rate", "learning rate", color="0.75", linewidth=1)
    if any(line.get("loss") != line.get("next_token") for line in lines):  # else one curve hides the other
        _draw(loss_axis, lines, "loss", "all terms, weighted", color="tab:blue", linewidth=1, alpha=0.5)
    _draw(loss_axis, lines, "next_token", "next token, training", color="tab:blue", linewidth=1.5)
    _draw(
        loss_axis,
        lines,
        "held_out_loss",
        "next token, held out",
        color="tab:orange",
        marker="o",
        markersize=3,
    )
    loss_axis.set(xlabel="million tokens", ylabel="loss, nats per token")
    rate_axis.set_ylabel("learning rate", color="0.5")
    rate_axis.set_ylim(bottom=0)
    loss_axis.set_zorder(rate_axis.get_zorder() + 1)  # draw the loss over the learning rate
    loss_axis.patch.set_visible(False)
    loss_axis.grid(alpha=0.3)
    loss_axis.legend(loc="upper right")
    if has_health:
        loss_axis.set_xlabel("")
    write_atomically(path, picture.render(figure, picture.kind_of(path)))


def _draw_health(axis: Any, lines: list[Line]) -> None:
    """The signs of :mod:`bitexport.train.run_health`, in percent: means over the layers."""
    found = [line for line in lines if "zero_trits" in line]
    million_tokens = [line["tokens"] / 1e6 for line in found]
    zero = [[100 * value for value in line["zero_trits"]] for line in found]
    flips = [100 * sum(line["trit_flips"]) / len(line["trit_flips"]) for line in found]
    first = found[0]["weight_scale"]
    drift = [
        100
        * sum(now / before - 1 for now, before in zip(line["weight_scale"], first, strict=True))
        / len(first)
        for line in found
    ]
    axis.fill_between(million_tokens, [min(row) for row in zero], [max(row) for row in zero], alpha=0.2)
    axis.plot(million_tokens, [sum(row) / len(row) for row in zero], label="zero trits, range of the layers")
    axis.plot(million_tokens, flips, label="trits that flip per step")
    axis.plot(million_tokens, drift, label="drift of the scales")
    axis.plot(
        million_tokens, [_resolution(line) for line in found], label="resolution of activations, 127 = 100"
    )
    axis.set(xlabel="million tokens", ylabel="percent")
    axis.grid(alpha=0.3)
    axis.legend(loc="center right", fontsize="small")


def _resolution(line: Line) -> float:
    """Steps of an 8-bit activation per RMS, in percent of 127: small where outliers use up the range."""
    peaks: list[float] = line["activation_peak"]
    return 100 * sum(1 / peak for peak in peaks if peak > 0) / len(peaks)


def _read_nonempty(log: Path) -> list[Line]:
    try:
        lines = read_log(log)
    except OSError as error:
        raise OutputError(f"{log}: {error.strerror}; check the path") from error
    if not lines:
        raise OutputError(f"{log}: no step has been logged yet; wait for the first ones")
    return lines


def _draw(axis: Any, lines: list[Line], key: str, label: str, **style: Any) -> None:
    """Add the curve of ``key``, unless no line has it."""
    found = [line for line in lines if key in line]
    if not found:
        return
    million_tokens = [line["tokens"] / 1e6 for line in found]
    values = [line[key] for line in found]
    axis.plot(million_tokens, values, label=label, **style)
