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
    figure, loss_axis = picture.pyplot().subplots(figsize=(8, 4.5), layout="constrained")
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
    write_atomically(path, picture.render(figure, picture.kind_of(path)))


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
