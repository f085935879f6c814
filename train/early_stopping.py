"""Ending a run when the held-out loss no longer improves."""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers.trainer_callback import ExportableState, TrainerCallback

from bitexport.errors import UsageError


class WarmedEarlyStopping(TrainerCallback, ExportableState):  # type: ignore[misc]  # untyped here
    """Ends a run after ``patience`` evaluations in a row that do not improve on the best by ``min_delta``.

    Evaluations before step ``warmup_steps`` are ignored, even as the best: while quantization is being
    blended in, the model is better than it will ever be again.

    The Trainer makes a new object when it restores the state: look for ``stopped`` in ``log_history``.

    Raises:
        UsageError: an evaluation has no loss.
    """

    def __init__(self, patience: int = 20, min_delta: float = 1e-3, warmup_steps: int = 1000) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self.warmup_steps = warmup_steps
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0
        self.reason: str | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:  # noqa: ARG002
        if "eval_loss" not in metrics:
            raise UsageError(f"early stopping watches eval_loss; found only {', '.join(metrics)}")
        loss = float(metrics["eval_loss"])
        step = state.global_step
        if step < self.warmup_steps:
            return
        if self._improves(loss):
            self.best = loss
            self.best_step = step
            self.waited = 0
            return
        self.waited += 1
        if self.waited < self.patience:
            return
        self.reason = self._explain(loss, step)
        control.should_training_stop = True
        state.log_history.append({"step": step, "stopped": self.reason})
        if state.is_world_process_zero:
            logging.getLogger(__name__).warning(self.reason)

    def state(self) -> dict[str, dict[str, Any]]:
        """What the Trainer saves in a checkpoint and restores."""
        arguments = ("patience", "min_delta", "warmup_steps")
        attributes = ("best", "best_step", "waited", "reason")
        return {
            "args": {name: getattr(self, name) for name in arguments},
            "attributes": {name: getattr(self, name) for name in attributes},
        }

    def _improves(self, loss: float) -> bool:
        return math.isfinite(loss) and (self.best is None or self.best - loss > self.min_delta)

    def _explain(self, loss: float, step: int) -> str:
        since = f"none of {self.waited} evaluations in a row was finite"
        if self.best is not None:
            best = f"{self.best:.4f} at step {self.best_step}"
            since = f"{self.waited} evaluations in a row were not {self.min_delta} below the best, {best}"
        return f"stopped at step {step}: eval_loss is {loss:.4f}, and {since}"
