"""What changes during a run: the blend of quantization, the weights of the terms, and when to stop.

The ramps are pure functions of the optimizer step: a resumed run needs only the Trainer's ``global_step``.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers.trainer_callback import ExportableState, TrainerCallback

from bitexport.errors import UsageError

#: Where in a run (0 to 1) a term of the loss begins to count, and from where it counts in full.
CURRICULUM: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("next_token", "relation", "logits"), (0.0, 0.0)),
    **dict.fromkeys(("feature", "attention"), (0.1, 0.4)),
    **{"layerwise": (0.4, 0.7), "contrastive": (0.7, 1.0)},
}


def ramp(step: int, warmup_steps: int, shape: str = "linear") -> float:
    """0 at step 0, exactly 1 from ``warmup_steps`` on, linear or half a cosine between them."""
    if step >= warmup_steps:
        return 1.0
    done = max(0, step) / warmup_steps
    if shape == "cosine":
        return (1 - math.cos(math.pi * done)) / 2
    if shape != "linear":
        raise UsageError(f"a warm-up of shape {shape!r} is unknown; expected linear or cosine")
    return done


def term_weight(term: str, progress: float) -> float:
    """What the curriculum multiplies a term's own weight with, 0 to 1, at ``progress`` (0 to 1) of a run."""
    if term not in CURRICULUM:
        raise UsageError(f"the curriculum has no term {term!r}; expected one of {', '.join(CURRICULUM)}")
    start, full = CURRICULUM[term]
    return 1.0 if progress >= full else max(0.0, (progress - start) / (full - start))


class WarmedEarlyStopping(TrainerCallback, ExportableState):  # type: ignore[misc]  # untyped here
    """Ends a run when ``patience`` evaluations in a row are no better than the best by ``min_delta``.

    Evaluations before step ``warmup_steps`` are not looked at, not even as the best: while quantization is
    being blended in the model is better than it will ever be again. Where the Trainer restores the state, it
    makes a new object: look for ``stopped`` in ``log_history``. UsageError: an evaluation has no loss.
    """

    def __init__(self, patience: int = 20, min_delta: float = 1e-3, warmup_steps: int = 1000) -> None:
        self.patience, self.min_delta, self.warmup_steps = patience, min_delta, warmup_steps
        self.best: float | None = None
        self.best_step = self.waited = 0
        self.reason: str | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:  # noqa: ARG002
        if "eval_loss" not in metrics:
            raise UsageError(f"early stopping watches eval_loss; found only {', '.join(metrics)}")
        value, step = float(metrics["eval_loss"]), state.global_step
        if step < self.warmup_steps:
            return
        if math.isfinite(value) and (self.best is None or self.best - value > self.min_delta):
            self.best, self.best_step, self.waited = value, step, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            best = "never a number" if self.best is None else f"{self.best:.4f} at step {self.best_step}"
            since = f"{self.waited} evaluations in a row were not {self.min_delta} below the best, {best}"
            self.reason = f"stopped at step {step}: eval_loss is {value:.4f}, and {since}"
            control.should_training_stop = True
            state.log_history.append({"step": step, "stopped": self.reason})
            if state.is_world_process_zero:
                logging.getLogger(__name__).warning(self.reason)

    def state(self) -> dict[str, dict[str, Any]]:
        names = {
            "args": ("patience", "min_delta", "warmup_steps"),
            "attributes": ("best", "best_step", "waited", "reason"),
        }
        return {kind: {name: getattr(self, name) for name in of_kind} for kind, of_kind in names.items()}
