"""transformers' Trainer with our loss, our optimizer, our log, and checkpoints that lose nothing."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback

from bitexport.errors import BitexportError
from bitexport.system.files import whole_folder
from bitexport.train.batch import UNITS, Batch
from bitexport.train.causes import describe_zero_rows, zero_rows
from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import BatchPlan
from bitexport.train.early_stopping import WarmedEarlyStopping
from bitexport.train.fsdp import check_fsdp
from bitexport.train.models import StageModels
from bitexport.train.objective.objective import UNIT_OF_TERM, Objective
from bitexport.train.objective.schedules import ramp
from bitexport.train.optimizer import build_optimizer
from bitexport.train.run_folder import COMPLETE, last_checkpoint, resume_advice
from bitexport.train.run_health import RunHealth
from bitexport.train.stop import StopRequest
from bitexport.train.student.bitlinear import hold_quantized, release_quantized, set_blend
from bitexport.train.student.saved_form import write_saved_form
from bitexport.train.term_sums import TermSums
from bitexport.train.training_arguments import training_arguments
from bitexport.train.watch import FiniteWatch

# Files of a checkpoint in addition to the Trainer's.
_OBJECTIVE_FILE = "objective.safetensors"
_TERM_SUMS_FILE = "terms.json"
_HEALTH_FILE = "health.safetensors"
# Steps after which several processes on accelerators ask each other whether to stop.
_STOP_EVERY = 10
# Of each term, the place of its unit in a batch's shares.
_UNIT_NUMBER = {name: UNITS.index(unit) for name, unit in UNIT_OF_TERM.items()}


class DivergedError(BitexportError):
    """A loss, a gradient or a weight is NaN or infinite; the last checkpoint precedes it."""


class StudentTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Trains ``models.student`` on the micro-batches of ``plan``; checkpoints go into ``folder``.

    Args:
        folder: the stage's folder.
        held_out: the micro-batches that :meth:`evaluate` uses.
        learning_rate: the peak of the stage's schedule.

    Raises:
        UsageError: settings do not fit the models or the way training was launched.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        models: StageModels,
        plan: BatchPlan,
        held_out: list[Batch],
        learning_rate: float,
    ) -> None:
        self.config = config
        self.held_out = held_out
        self.stop = StopRequest()
        self.term_sums = TermSums()
        self.watch = FiniteWatch()
        self.health = RunHealth(models.student)
        self.zero_rows = zero_rows(models.student)
        # At least the last step has lambda 1, even with a ratio of 1.
        self.lambda_warmup_steps = min(round(config.lambda_warmup_ratio * plan.steps), plan.steps - 1)
        self.optimizer: torch.optim.Optimizer | None = None
        self.control: Any = None
        torch.manual_seed(config.seed)  # projector and router start equal in all processes
        self.objective = Objective(config, models.student, models.teacher)
        super().__init__(
            model=models.student,
            args=training_arguments(config, folder, plan, learning_rate),
            train_dataset=plan,
            eval_dataset=plan,  # the Trainer requires one; evaluate() uses held_out
            data_collator=lambda batches: batches[0],
            processing_class=models.tokenizer,  # saved with every checkpoint
            callbacks=[_StepCallback(self)],
        )
        self.remove_callback(PrinterCallback)
        if config.early_stopping:
            warmup_steps = max(1000, self.lambda_warmup_steps)
            self.add_callback(WarmedEarlyStopping(warmup_steps=warmup_steps))
        self.model_accepts_loss_kwargs = False  # the Trainer averages micro-batches; see compute_loss
        self.objective.to(self.args.device)
        if models.teacher is not None:
            models.teacher.to(self.args.device)
        self.autocast_dtype = torch.bfloat16 if config.precision == "bfloat16" else None
        # Worth the memory if a step uses them more than once. FSDP has whole weights only in a forward pass.
        self.holds_quantized = self.args.gradient_accumulation_steps > 1 and not self.is_fsdp_enabled
        check_fsdp(config, getattr(self.accelerator.state, "fsdp_plugin", None))

    def blend(self, step: int) -> float:
        """Lambda of an optimizer step, counted from 0."""
        return ramp(step, self.lambda_warmup_steps, self.config.lambda_shape)

    # The loss

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> Tensor:
        """The weighted sum of the terms, each a mean over what it counts in the micro-batch.

        In training it is scaled by the micro-batch's share of its step (see :data:`Batch`): the Trainer's
        mean over micro-batches, and DDP's over processes, are then means over the step's tokens.
        """
        self.objective.train(model.training)
        self.objective.progress = self.state.global_step / max(1, self.state.max_steps)
        # The Trainer's own autocast covers only the wrapped student; evaluation stays in float32.
        autocast = self.accelerator.autocast() if model.training else contextlib.nullcontext()
        with autocast:
            raw = self.objective(model, inputs, self.model)
        if model.training:
            raw = {name: value * inputs["shares"][_UNIT_NUMBER[name]] for name, value in raw.items()}
        weighted = {name: weight * raw[name] for name, weight in self.objective.weights().items()}
        if model.training:
            self.watch.look(
                {f"the term {name}": value for name, value in raw.items()}, self.state.global_step + 1
            )
            self.term_sums.add(raw, weighted)
        return torch.stack(list(weighted.values())).sum()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Next-token loss of the held-out batches in nats per counted token; every process evaluates all."""
        self.check_finite()
        self.model.eval()
        losses = []
        tokens = 0
        if self.held_out and not self.is_fsdp_enabled:
            self.health.measure(self.model, self._prepare_inputs(self.held_out[0]), self.state.global_step)
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.held_out:
                loss = self.compute_loss(self.model, self._prepare_inputs(batch))
                losses.append(loss.double() * len(batch["targets"]))
                tokens += len(batch["targets"])
        self.model.train()
        total = float(torch.stack(losses).sum()) if losses else 0.0
        metrics = {"eval_loss": total / max(tokens, 1)}
        if self.objective.noise is not None:
            metrics["eval_diffusion_loss"] = self._evaluate_diffusion()
        if not math.isfinite(total):
            raise self._diverged(f"the held-out loss is {metrics['eval_loss']}", self.state.global_step)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate_diffusion(self) -> float:
        """The loss of block diffusion on the held-out batches, a mean over tokens; always the same noise."""
        assert self.objective.noise is not None
        losses = []
        tokens = 0
        self.model.eval()
        with torch.no_grad():
            for number, batch in enumerate(self.held_out):
                noisy = self.objective.noise.add(batch, number)
                counted = self.objective.noise.predicted(noisy)
                loss = self.objective.diffusion_loss(self.model, self._prepare_inputs(noisy), self.model)
                losses.append(loss.double() * counted)
                tokens += counted
        self.model.train()
        return float(torch.stack(losses).sum()) / max(tokens, 1) if losses else 0.0

    def check_finite(self) -> None:
        """Raise DivergedError if a term or a gradient was not finite; waits for the device."""
        bad = self.watch.found()
        if bad is not None:
            raise self._diverged(f"{bad.name} is {bad.value}", bad.step)

    def _diverged(self, what: str, step: int) -> DivergedError:
        before = last_checkpoint(Path(self.args.output_dir))
        kept = "there is no checkpoint yet" if before is None else f"{before} is the last good checkpoint"
        advice = (
            "check the data, or start another run with a lower learning_rate, from that checkpoint if you "
        )
        advice += "set student to it"
        if self.zero_rows:
            per_step = len(self.train_dataset) // self.train_dataset.steps
            of_step = range(per_step * (step - 1), min(per_step * step, len(self.train_dataset)))
            batches = (self.train_dataset[index] for index in of_step)
            advice = describe_zero_rows(self.zero_rows, batches, self.processing_class) or advice
        return DivergedError(f"step {step}: {what}; expected a finite number; {kept}; {advice}")

    # The optimizer step

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            named = list(model.named_parameters())
            for name, parameter in self.objective.named_parameters():
                named.append((f"objective.{name}", parameter))
            self.optimizer = build_optimizer(named, self.config, self.args.learning_rate)
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        """Average the gradients of the objective, which DDP does not; clip all of them; watch the norm."""
        objective_parameters = [value for value in self.objective.parameters() if value.grad is not None]
        for parameter in objective_parameters:
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        parameters = [*model.parameters(), *objective_parameters]
        norm = self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP's
        self.watch.look({"the norm of the gradient": norm}, self.state.global_step + 1)
        return norm

    # The log

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add to every training line the means of all terms since the last one, over all processes."""
        if "loss" in logs:
            self.check_finite()
        if "loss" in logs and self.term_sums.values:
            self.term_sums.move_to_main_process(self.accelerator)
            logs |= self.term_sums.take_means()
            logs["lambda"] = self.blend(self.state.global_step - 1)
            if self.objective.router is not None:
                usage = self.objective.router.usage().to(self.args.device)
                self.objective.usage = self.accelerator.reduce(usage, "mean").cpu()
        super().log(logs, *args, **kwargs)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save the Trainer's checkpoint and the objective's state; remove it again if that fails."""
        self.check_finite()
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter.detach()).all():
                raise self._diverged(f"after it {name} is not finite", self.state.global_step)
        self.term_sums.move_to_main_process(self.accelerator)
        stage_folder = Path(self._get_output_dir(trial))
        folder = stage_folder / f"checkpoint-{self.state.global_step}"
        with whole_folder(folder, resume_advice(stage_folder)):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if (folder / "config.json").exists():  # the shards of FSDP have none
                    write_saved_form(folder, has_sub_norms=getattr(self.model, "sub_norms_added", False))
                save_file(self.objective.state(), folder / _OBJECTIVE_FILE)
                self.term_sums.save(folder / _TERM_SUMS_FILE)
                self.health.save(folder / _HEALTH_FILE)
                (folder / COMPLETE).touch()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        state = self.objective.state()
        for name, value in load_file(folder / _OBJECTIVE_FILE).items():
            state[name].data.copy_(value)
        self.health.load(folder / _HEALTH_FILE)
        if self.is_world_process_zero():
            self.term_sums.load(folder / _TERM_SUMS_FILE)


class _StepCallback(TrainerCallback):  # type: ignore[misc]
    """Sets lambda before each optimizer step, and stops after one if asked to."""

    def __init__(self, trainer: StudentTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if not self.trainer.is_fsdp_enabled:
            self.trainer.health.begin(state.global_step)

    def on_step_begin(self, _args: Any, state: Any, _control: Any, *, model: Any, **_: Any) -> None:
        self.trainer.objective.zero_grad()  # the Trainer resets only the model's gradients
        set_blend(model, self.trainer.blend(state.global_step))
        if self.trainer.holds_quantized:
            hold_quantized(model, self.trainer.autocast_dtype)

    def on_pre_optimizer_step(self, _args: Any, _state: Any, _control: Any, *, model: Any, **_: Any) -> None:
        release_quantized(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        stop = self.trainer.stop
        # All processes stop at the same step, whichever of them got the signal. Reading the answer waits for
        # an accelerator, so there they ask less often.
        is_due = args.device.type == "cpu" or state.global_step % _STOP_EVERY == 0
        if args.world_size > 1 and not is_due:
            return
        if args.world_size > 1:
            flag = torch.tensor(float(stop.asked), device=args.device)
            stop.asked = bool(self.trainer.accelerator.reduce(flag, "sum") > 0)
        if stop.asked:
            control.should_save = True
            control.should_training_stop = True
