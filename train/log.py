"""What a run tells: log.jsonl, a line of text now and then, and how far it is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from bitexport.progress import Progress, ProgressEvent
from train.plan import BatchPlan


class RunLog(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """One JSON object a line: ``step, tokens, seconds``, and then what was measured there.

    That is ``held_out_loss``, or the ``loss`` (the total) with every term raw and weighted, ``grad_norm``,
    ``learning_rate`` and ``lambda``; losses are in nats a token.
    """

    def __init__(self, path: Path, plan: BatchPlan, say: Any, progress: Progress) -> None:
        self.path, self.plan, self.say, self.progress = path, plan, say, progress
        self.seconds_before = 0.0  # trained before this process
        self.first_step = 0
        self.start = self.shown = time.monotonic()
        self.loss = float("nan")

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Forget lines after the checkpoint that is resumed: they are about to be written again."""
        if not state.is_world_process_zero:
            return
        lines = read_log(self.path) if self.path.exists() else []
        kept = [line for line in lines if line["step"] <= state.global_step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.seconds_before = max((line["seconds"] for line in kept), default=0.0)
        self.first_step, self.start = state.global_step, time.monotonic()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        now = time.monotonic()
        if now - self.shown > 0.5:
            self.shown = now
            done, total = (int(self.plan.tokens_after[i]) for i in (state.global_step, -1))
            label = f"loss {self.loss:.3f}, {self._rate(state.global_step):,.0f} tokens/s"
            self.progress(ProgressEvent(done, total, "tokens", label))

    def _rate(self, step: int) -> float:
        """Tokens a second since this process began."""
        tokens = self.plan.tokens_after[step] - self.plan.tokens_after[self.first_step]
        return float(tokens) / max(1e-9, time.monotonic() - self.start)

    def on_log(self, _args: Any, state: Any, _control: Any, *, logs: dict[str, float], **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        line: dict[str, float] = {
            "step": state.global_step,
            "tokens": int(self.plan.tokens_after[state.global_step]),
            "seconds": round(self.seconds_before + time.monotonic() - self.start, 1),
        }
        if "eval_loss" in logs:
            line["held_out_loss"] = logs["eval_loss"]
            self.say(f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}")
        elif "loss" in logs:
            line |= {key: value for key, value in logs.items() if key != "epoch"}
            self.loss = logs["loss"]
            self.say(self._sentence(state, logs))
        else:
            return  # the Trainer's own summary at the end
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _sentence(self, state: Any, logs: dict[str, float]) -> str:
        names = [name.removeprefix("weighted_") for name in logs if name.startswith("weighted_")]
        terms = [f"{name} {logs[name]:.5g} (weighted {logs[f'weighted_{name}']:.5g})" for name in names]
        tokens = self.plan.tokens_after
        return (
            f"step {state.global_step}/{state.max_steps}: {tokens[state.global_step]:,} of "
            f"{tokens[-1]:,} tokens, "
            f"{self._rate(state.global_step):,.0f} tokens/s; {', '.join(terms)}; total {logs['loss']:.5g}; "
            f"lr {logs['learning_rate']:.3g}, lambda {logs['lambda']:.3g}"
        )


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
