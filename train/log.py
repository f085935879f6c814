"""The log of a stage: log.jsonl, lines of text, and progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import TrainerCallback

from bitexport.progress import Progress, ProgressEvent
from bitexport.system.files import write_atomically
from bitexport.train.loss_curve import read_log
from bitexport.train.objective.objective import Objective
from bitexport.train.objective.router import describe_usage
from bitexport.train.run_health import RunHealth

#: Shows one line of text to the user.
Say = Callable[[str], None]
# Seconds between two updates of the progress display.
_PROGRESS_EVERY = 0.5


class RunLog(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Writes one JSON object per line: ``step``, ``tokens``, ``seconds``, and what was measured.

    That is either ``held_out_loss`` with :data:`~bitexport.train.run_health.HEALTH_KEYS`, with block
    diffusion also ``held_out_diffusion_loss``; or ``loss`` (the total), every term raw and weighted,
    ``grad_norm``, ``learning_rate``, ``lambda``, and with a router ``router``, the use of its experts. Losses
    are in nats per token.

    Args:
        path: the file; lines of an interrupted run are kept.
        tokens_after: tokens seen after each number of steps, ``[steps + 1]``.
        say: called with a line of text for each line of the log.
        health: measured before each evaluation is logged.
    """

    def __init__(
        self,
        path: Path,
        objective: Objective,
        tokens_after: npt.NDArray[np.int64],
        say: Say,
        progress: Progress,
        health: RunHealth | None = None,
    ) -> None:
        self.health = health
        self.path = path
        self.objective = objective
        self.tokens_after = tokens_after
        self.say = say
        self.progress = progress
        self.loss = float("nan")  # of the last training line
        self.first_step = 0  # of this process
        self.seconds_before = 0.0  # that earlier processes trained
        self.start = time.monotonic()  # of this process
        self.progress_shown = self.start

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Drop lines after the checkpoint that is resumed: they will be written again."""
        if not state.is_world_process_zero:
            return
        lines = read_log(self.path) if self.path.exists() else []
        kept = [line for line in lines if line["step"] <= state.global_step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.seconds_before = max((line["seconds"] for line in kept), default=0.0)
        self.first_step = state.global_step
        self.start = time.monotonic()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        now = time.monotonic()
        if now - self.progress_shown <= _PROGRESS_EVERY:
            return
        self.progress_shown = now
        done = int(self.tokens_after[state.global_step])
        total = int(self.tokens_after[-1])
        label = f"loss {self.loss:.3f}, {self._tokens_per_second(state.global_step):,.0f} tokens/s"
        self.progress(ProgressEvent(done, total, "tokens", label))

    def on_log(self, _args: Any, state: Any, _control: Any, *, logs: dict[str, float], **_: Any) -> None:
        is_measurement = "loss" in logs or "eval_loss" in logs  # not the Trainer's summary at the end
        if not state.is_world_process_zero or not is_measurement:
            return
        line: dict[str, Any] = {
            "step": state.global_step,
            "tokens": int(self.tokens_after[state.global_step]),
            "seconds": round(self.seconds_before + time.monotonic() - self.start, 1),
        }
        if "eval_loss" in logs:
            line["held_out_loss"] = logs["eval_loss"]
            text = f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}"
            if "eval_diffusion_loss" in logs:
                line["held_out_diffusion_loss"] = logs["eval_diffusion_loss"]
                text += f", of block diffusion {logs['eval_diffusion_loss']:.4f}"
            if self.health is not None and self.health.last:
                line |= self.health.last
                text += f"; {self.health.describe()}"
            self.say(text)
        else:
            line |= {key: value for key, value in logs.items() if key != "epoch"}
            if self.objective.usage is not None:
                line["router"] = self.objective.usage.tolist()
            self.loss = logs["loss"]
            self.say(self._describe_step(state, logs))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _tokens_per_second(self, step: int) -> float:
        """The mean since this process began."""
        done = self.tokens_after[step] - self.tokens_after[self.first_step]
        return float(done) / max(1e-9, time.monotonic() - self.start)

    def _describe_step(self, state: Any, logs: dict[str, float]) -> str:
        step = state.global_step
        terms = []
        for key in logs:
            if key.startswith("weighted_"):
                name = key.removeprefix("weighted_")
                terms.append(f"{name} {logs[name]:.5g} (weighted {logs[key]:.5g})")
        text = (
            f"step {step}/{state.max_steps}: {self.tokens_after[step]:,} of {self.tokens_after[-1]:,} tokens"
            f", {self._tokens_per_second(step):,.0f} tokens/s; {', '.join(terms)}; total {logs['loss']:.5g}; "
            f"lr {logs['learning_rate']:.3g}, lambda {logs['lambda']:.3g}"
        )
        if self.objective.usage is not None:
            text += f"; router {describe_usage(self.objective.usage)}"
        return text
