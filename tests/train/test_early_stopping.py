"""Early stopping inside a Trainer, before the end of its warm-up, and after a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from bitexport.errors import UsageError
from bitexport.train.early_stopping import WarmedEarlyStopping


class Losses(Trainer):  # type: ignore[misc]
    """Trains one number and takes its evaluations from a list."""

    held_out: list[float]

    def compute_loss(self, model: torch.nn.Module, inputs: Any, **_: Any) -> torch.Tensor:
        return model(inputs["x"]).square().mean()  # type: ignore[no-any-return]

    def evaluate(self, **_: Any) -> dict[str, float]:
        metrics = {"eval_loss": self.held_out[self.state.global_step // 2 - 1]}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def run(
    folder: Path, held_out: list[float], steps: int, resume: bool = False
) -> tuple[Losses, WarmedEarlyStopping]:
    """An evaluation and a checkpoint every other step; stopping from step 4, by three evaluations."""
    arguments = TrainingArguments(
        str(folder), max_steps=steps, eval_strategy="steps", eval_steps=2, save_steps=2, report_to=[],
        use_cpu=True,
        restore_callback_states_from_checkpoint=True, remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    stopping = WarmedEarlyStopping(patience=3, min_delta=0.1, warmup_steps=4)
    trainer = Losses(
        torch.nn.Linear(1, 1), arguments, train_dataset=[{"x": [1.0]}] * 64, eval_dataset=[{"x": [1.0]}],
        callbacks=[stopping], data_collator=lambda rows: {"x": torch.tensor([row["x"] for row in rows])},
    )  # fmt: skip
    trainer.held_out = held_out
    trainer.train(resume_from_checkpoint=resume)
    (found,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, WarmedEarlyStopping))
    return trainer, found


def test_it_stops_after_patience_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # The best of all, 0.5 at step 2, is from the warm-up.
    # 1.95 and 1.91 are no improvement of 0.1 on 2.0; 1.8 is.
    held_out = [0.5, 2.0, 1.95, 1.91, 1.8, math.nan, 1.75, 1.9, 0.1, 0.1]
    trainer, stopping = run(tmp_path, held_out, 20)
    assert trainer.state.global_step == 16
    assert stopping.reason is not None
    for words in ("step 16", "eval_loss is 1.9000", "3 evaluations", "1.8000 at step 10"):
        assert words in stopping.reason
    assert stopping.reason in caplog.text
    assert {"step": 16, "stopped": stopping.reason} in trainer.state.log_history


def test_nothing_stops_before_the_warm_up_is_over() -> None:
    stopping = WarmedEarlyStopping(patience=2, warmup_steps=1000)
    state, control = TrainerState(), TrainerControl()
    for step in range(0, 1000, 100):
        state.global_step = step
        stopping.on_evaluate(None, state, control, {"eval_loss": 3.0 + step})
    assert not control.should_training_stop
    assert stopping.best is None


def test_its_state_survives_a_kill(tmp_path: Path) -> None:
    """Two of three evaluations before the kill, one after it: a fresh count would continue."""
    held_out = [0.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    trainer, stopping = run(tmp_path, held_out, 8)
    assert trainer.state.global_step == 8
    assert (stopping.waited, stopping.best, stopping.reason) == (2, 2.0, None)
    trainer, stopping = run(tmp_path, held_out, 16, resume=True)
    assert trainer.state.global_step == 10
    assert stopping.reason is not None
    assert "2.0000 at step 4" in stopping.reason


def test_an_evaluation_without_the_metric_is_an_error() -> None:
    with pytest.raises(UsageError, match="watches eval_loss; found only eval_bleu"):
        WarmedEarlyStopping().on_evaluate(None, TrainerState(), TrainerControl(), {"eval_bleu": 1.0})
