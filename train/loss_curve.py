"""The loss curve of a training run as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitexport.errors import OutputError
from bitexport.system import picture
from bitexport.system.files import write_atomically


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl, in order; one that was cut off (a full disk) is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def plot(log: Path, path: Path) -> None:
    """Draw training and held-out loss (nats a token) and the learning rate over millions of tokens.

    Args:
        log: a run's log.jsonl.
        path: ``.png`` or ``.svg``; replaced if it is there.

    Raises:
        OutputError: the log cannot be read or is empty, or the picture cannot be written.
    """
    try:
        lines = read_log(log)
    except OSError as error:
        raise OutputError(f"{log}: {error.strerror}; check the path") from error
    if not lines:
        raise OutputError(f"{log}: no step has been logged yet; wait for the first ones")
    figure, loss_axis = picture.pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    rate_axis = loss_axis.twinx()
    alone = all(
        line.get("loss") == line.get("next_token") for line in lines
    )  # one curve would hide the other
    for axis, key, label, style in (
        (rate_axis, "learning_rate", "learning rate", {"color": "0.75", "linewidth": 1}),
        (loss_axis, "loss", "all terms, weighted", {"color": "tab:blue", "linewidth": 1, "alpha": 0.5}),
        (loss_axis, "next_token", "next token, training", {"color": "tab:blue", "linewidth": 1.5}),
        (
            loss_axis,
            "held_out_loss",
            "next token, held out",
            {"color": "tab:orange", "marker": "o", "markersize": 3},
        ),
    ):
        points = [(line["tokens"] / 1e6, line[key]) for line in lines if key in line]
        if not points or (key == "loss" and alone):
            continue
        tokens, values = zip(*points, strict=True)
        axis.plot(tokens, values, label=label, **style)
    loss_axis.set(xlabel="million tokens", ylabel="loss, nats a token")
    rate_axis.set_ylabel("learning rate", color="0.5")
    rate_axis.set_ylim(bottom=0)
    loss_axis.set_zorder(rate_axis.get_zorder() + 1)  # the loss lies over the learning rate
    loss_axis.patch.set_visible(False)
    loss_axis.grid(alpha=0.3)
    loss_axis.legend(loc="upper right")
    write_atomically(path, picture.render(figure, picture.kind_of(path)))
