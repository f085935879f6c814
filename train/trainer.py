"""transformers' Trainer with our loss, our optimizer, our log, and a way out that loses nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from bitexport.errors import BitexportError, OutputError
from train.bitlinear import set_blend
from train.config import TrainConfig
from train.distill import Objective, Terms
from train.optimizer import build_optimizer
from train.plan import IGNORED, Batch, BatchPlan
from train.schedules import ramp

# Written last into a checkpoint: without it, whoever wrote was stopped half-way.
_COMPLETE = "complete"
_OBJECTIVE, _SUMS = "objective.safetensors", "terms.json"


class DivergedError(BitexportError):
    """A loss or a gradient is NaN or infinite; the last checkpoint is from before."""


class StudentTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Trains ``model`` for ``objective`` on the batches of ``plan``.

    Args:
        held_out: what :meth:`evaluate` looks at: the next-token loss over these batches.
        lambda_steps: optimizer steps over which quantization is blended in.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        config: TrainConfig,
        plan: BatchPlan,
        held_out: list[Batch],
        *,
        lambda_steps: int,
        **rest: Any,
    ) -> None:
        self.objective, self.config, self.plan, self.held_out = objective, config, plan, held_out
        # Sums over the micro-batches since the last line of the log, and their number.
        self.sums: dict[str, float] = {}
        self.micro_batches = 0
        self.terms: dict[str, float] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.control: Any = None
        super().__init__(
            model=model,
            train_dataset=plan,
            eval_dataset=plan,  # asked for, but see evaluate()
            data_collator=lambda batches: batches[0],
            callbacks=[_Blend(lambda_steps, config.lambda_shape, objective)],
            **rest,
        )
        self.model_accepts_loss_kwargs = False  # our losses are means: the Trainer averages micro-batches
        self.objective.to(self.args.device)

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> torch.Tensor:
        """The weighted sum of the terms, a mean over the counted tokens of the micro-batch."""
        self.objective.train(model.training)
        self.objective.progress = self.state.global_step / max(1, self.state.max_steps)
        terms: Terms = self.objective(model, inputs, self.model)
        total = terms.total()
        if model.training:
            for name, value in terms.raw.items():
                number = value.item()
                if not torch.isfinite(value):
                    raise DivergedError(self._diverged(f"the term {name} is {number}"))
                self.sums[name] = self.sums.get(name, 0.0) + number
                weighted = f"weighted_{name}"
                self.sums[weighted] = self.sums.get(weighted, 0.0) + terms.weights[name] * number
            self.micro_batches += 1
        return total

    def _diverged(self, what: str) -> str:
        before = last_checkpoint(Path(self.args.output_dir))
        kept = "no checkpoint was saved before" if before is None else f"{before} is the last good checkpoint"
        return (
            f"step {self.state.global_step + 1}: {what}; expected a finite number; {kept}; "
            "go on from there with --resume and a lower learning rate, or look at the data"
        )

    def _clip_grad_norm(self, model: Any) -> Any:
        """Also what DDP does not do for the objective's own parameters, and the check before the step."""
        if self.args.world_size > 1:
            for parameter in self.objective.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        norm = super()._clip_grad_norm(model)
        own = [parameter for parameter in self.objective.parameters() if parameter.grad is not None]
        if own:
            torch.nn.utils.clip_grad_norm_(own, self.args.max_grad_norm)
        if not torch.isfinite(torch.as_tensor(norm)):
            raise DivergedError(self._diverged(f"the norm of the gradient is {float(norm)}"))
        return norm

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            named = [*(self.model if model is None else model).named_parameters()]
            named += [(f"objective.{name}", value) for name, value in self.objective.named_parameters()]
            self.optimizer = build_optimizer(named, self.config, self.args.learning_rate)
        return self.optimizer

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Next-token loss of the held-out batches, in nats a counted token."""
        total = count = 0.0
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.held_out:
                counted = int((batch["labels"][:, 1:] != IGNORED).sum())
                loss = self.compute_loss(self.model_wrapped, self._prepare_inputs(batch))
                total, count = total + float(loss) * counted, count + counted
        self.model.train(training)
        metrics = {"eval_loss": total / max(count, 1.0)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """With every training line, the means of all terms since the last one, over all processes."""
        if "loss" in logs and self.micro_batches:
            sums = torch.tensor([*self.sums.values(), self.micro_batches], dtype=torch.float64)
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums.to(self.args.device), "sum").cpu()
            self.terms = {name: float(sums[i] / sums[-1]) for i, name in enumerate(self.sums)}
            total = sum(value for name, value in self.terms.items() if name.startswith("weighted_"))
            logs |= {**self.terms, "loss": total, "lambda": self._blend()}
            self.sums, self.micro_batches = {}, 0
        super().log(logs, *rest, **named)

    def _blend(self) -> float:
        callbacks = self.callback_handler.callbacks
        return next(callback.blend for callback in callbacks if isinstance(callback, _Blend))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's, with the objective's state; one that cannot be finished is removed."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                if own := self.objective.state_dict():
                    save_file(own, folder / _OBJECTIVE)
                sums = {"sums": self.sums, "micro_batches": self.micro_batches}
                (folder / _SUMS).write_text(json.dumps(sums))
                (folder / _COMPLETE).touch()
        except (
            OSError,
            RuntimeError,
            KeyboardInterrupt,
        ) as error:  # torch.save says RuntimeError of a full disk
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt):
                raise
            before = last_checkpoint(folder.parent)
            kept = "none was saved before" if before is None else f"{before} is kept"
            raise OutputError(
                f"{folder}: cannot save the checkpoint: {error}; {kept}; make room, then go on with --resume"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        if (folder / _OBJECTIVE).exists():
            self.objective.load_state_dict(load_file(folder / _OBJECTIVE))
        kept = json.loads((folder / _SUMS).read_text())
        self.sums, self.micro_batches = kept["sums"], kept["micro_batches"]


class _Blend(TrainerCallback):  # type: ignore[misc]
    """Lambda, once an optimizer step. It follows from the step alone, which every checkpoint holds."""

    def __init__(self, steps: int, shape: str, objective: Objective) -> None:
        self.steps, self.shape, self.blend, self.objective = steps, shape, 1.0, objective

    def on_step_begin(self, _args: Any, state: Any, _control: Any, *, model: Any, **_: Any) -> None:
        self.objective.zero_grad()  # the Trainer does so for the model only
        blend = ramp(state.global_step, self.steps, self.shape)
        if blend != self.blend or state.global_step == 0:
            self.blend = blend
            set_blend(model, blend)


class StopRequest(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C and SIGTERM: a checkpoint after the step, then the end. A second one ends the run at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals while the block lasts."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, _state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:  # all processes stop at the same step, whoever was asked
            flag = torch.tensor(float(self.asked), device=args.device)
            torch.distributed.all_reduce(flag)
            self.asked = bool(flag.item() > 0)
        if self.asked:
            control.should_save = control.should_training_stop = True


def last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint-<step> in ``folder``."""
    found = [path for path in folder.glob("checkpoint-*") if (path / _COMPLETE).exists()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def training_arguments(config: TrainConfig, folder: Path, rate: float, steps: int) -> TrainingArguments:
    """Our settings in the Trainer's words."""
    decay = {"num_decay_steps": round(config.decay_ratio * steps), "decay_type": config.schedule}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,  # an item of the plan is a whole micro-batch
        learning_rate=rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs=decay,
        warmup_steps=round(config.warmup_ratio * steps),
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        train_sampling_strategy="sequential",  # the plan shuffles
        remove_unused_columns=False,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # we stop at such a loss
        eval_strategy="steps",
        eval_steps=config.eval_every,
        save_steps=config.save_every,
        save_total_limit=2,
        report_to=config.report_to,
        run_name=folder.name,
        disable_tqdm=True,
    )
