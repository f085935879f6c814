"""What a run tells: log.jsonl, a line of text now and then, and how far it is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from bitexport.progress import Progress, ProgressEvent
from bitexport.system.files import write_atomically
from bitexport.train.loss_curve import read_log
from bitexport.train.objective.objective import Objective
from bitexport.train.objective.router import describe


class RunLog(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """One JSON object a line: ``step, tokens, seconds``, and what was measured there.

    That is ``held_out_loss``, or the ``loss`` (the total) with every term raw and weighted, ``grad_norm``,
    ``learning_rate``, ``lambda``, and with a router the use of its experts; losses are in nats a token.
    """

    def __init__(self, path: Path, objective: Objective, tokens: Any, say: Any, progress: Progress) -> None:
        self.path, self.objective, self.tokens = path, objective, tokens
        self.say, self.progress, self.loss = say, progress, float("nan")
        self.first_step, self.seconds_before = 0, 0.0  # trained before this process
        self.start = self.shown = time.monotonic()

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Forget lines after the checkpoint that is resumed: they are about to be written again."""
        if not state.is_world_process_zero:
            return
        lines = read_log(self.path) if self.path.exists() else []
        kept = [line for line in lines if line["step"] <= state.global_step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.seconds_before = max((line["seconds"] for line in kept), default=0.0)
        self.first_step, self.start = state.global_step, time.monotonic()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        now = time.monotonic()
        if now - self.shown > 0.5:
            self.shown = now
            label = f"loss {self.loss:.3f}, {self._rate(state.global_step):,.0f} tokens/s"
            done, total = int(self.tokens[state.global_step]), int(self.tokens[-1])
            self.progress(ProgressEvent(done, total, "tokens", label))

    def _rate(self, step: int) -> float:  # tokens a second since this process began
        done = self.tokens[step] - self.tokens[self.first_step]
        return float(done) / max(1e-9, time.monotonic() - self.start)

    def on_log(self, _args: Any, state: Any, _control: Any, *, logs: dict[str, float], **_: Any) -> None:
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & logs.keys():
            return  # the last is the Trainer's own summary at the end
        seconds = round(self.seconds_before + time.monotonic() - self.start, 1)
        tokens = int(self.tokens[state.global_step])
        line: dict[str, Any] = {"step": state.global_step, "tokens": tokens, "seconds": seconds}
        if "eval_loss" in logs:
            line["held_out_loss"] = logs["eval_loss"]
            self.say(f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}")
        else:
            line |= {key: value for key, value in logs.items() if key != "epoch"}
            if self.objective.usage is not None:
                line["router"] = self.objective.usage.tolist()
            self.loss = logs["loss"]
            self.say(self._sentence(state, logs))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _sentence(self, state: Any, logs: dict[str, float]) -> str:
        names = [name.removeprefix("weighted_") for name in logs if name.startswith("weighted_")]
        terms = [f"{name} {logs[name]:.5g} (weighted {logs[f'weighted_{name}']:.5g})" for name in names]
        usage = self.objective.usage
        return (
            f"step {state.global_step}/{state.max_steps}: {self.tokens[state.global_step]:,} of "
            f"{self.tokens[-1]:,} tokens, {self._rate(state.global_step):,.0f} tokens/s; "
            f"{', '.join(terms)}; total {logs['loss']:.5g}; lr {logs['learning_rate']:.3g}, "
            f"lambda {logs['lambda']:.3g}" + ("" if usage is None else f"; router {describe(usage)}")
        )
