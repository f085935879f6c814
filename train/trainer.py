"""transformers' Trainer with our loss, our optimizer, our log, and a way out that loses nothing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from bitexport.errors import BitexportError, UsageError
from bitexport.system.files import whole_folder
from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import Batch, BatchPlan
from bitexport.train.objective.losses import NOT_COUNTED
from bitexport.train.objective.objective import Objective
from bitexport.train.objective.schedules import WarmedEarlyStopping, ramp
from bitexport.train.optimizer import build_optimizer
from bitexport.train.stop import StopRequest
from bitexport.train.student.bitlinear import set_blend

# Written last into a checkpoint: without it, whoever wrote was stopped half-way.
_COMPLETE = "complete"
_OBJECTIVE, _SUMS = "objective.safetensors", "terms.json"


class DivergedError(BitexportError):
    """A loss, a gradient or a weight is NaN or infinite; the last checkpoint is from before."""


class StudentTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Trains ``models`` (student, teacher or None, tokenizer) on the batches of ``plan``, into ``folder``.

    ``held_out`` are the batches that :meth:`evaluate` looks at. UsageError: what does not fit.
    """

    def __init__(
        self, config: TrainConfig, folder: Path, models: Any, plan: BatchPlan, held_out: Any, rate: float
    ) -> None:
        model, teacher, tokenizer = models
        self.config, self.held_out, self.stop = config, held_out, StopRequest()
        # The last step has lambda 1, whatever the ratio.
        self.lambda_steps = min(round(config.lambda_warmup_ratio * plan.steps), plan.steps - 1)
        # Of every term, over the micro-batches since the last line of the log, and their number.
        self.sums: dict[str, float] = defaultdict(float)
        self.optimizer: torch.optim.Optimizer | None = None
        self.control: Any = None
        torch.manual_seed(config.seed)  # a projector begins alike in all processes
        self.objective = Objective(config, model, teacher)
        super().__init__(
            model=model,
            args=_arguments(config, folder, plan, rate),
            train_dataset=plan,
            eval_dataset=plan,  # asked for, but see evaluate()
            data_collator=lambda batches: batches[0],
            processing_class=tokenizer,  # saved with every checkpoint
            callbacks=[_EveryStep(self)],
        )
        self.remove_callback(PrinterCallback)
        if config.early_stopping:
            self.add_callback(WarmedEarlyStopping(warmup_steps=max(1000, self.lambda_steps)))
        self.model_accepts_loss_kwargs = False  # our losses are means: the Trainer averages micro-batches
        self.objective.to(self.args.device)
        if teacher is not None:
            teacher.to(self.args.device)
        self._check_sharding()

    def _check_sharding(self) -> None:
        """Refuse what needs a whole weight outside of the layer that owns it, and FSDP that is left out."""
        config, wanted = self.config, os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        for wrong, what in (
            (wanted and not plugin, "CPUs: accelerate shards on accelerators only; leave it out"),
            (plugin and plugin.fsdp_version != 2, "fsdp_version 1; set it to 2"),
            (plugin and config.optimizer == "muon", 'optimizer = "muon"; set "adamw"'),
            (plugin and config.chunk_tokens, "chunk_tokens; set it to 0"),
            (plugin and (config.router or config.logit_projector), "router or logit_projector; set false"),
        ):
            if wrong:
                raise UsageError(f"FSDP does not go with {what}")

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> torch.Tensor:
        """The weighted sum of the terms, a mean over the counted tokens of the micro-batch."""
        self.objective.train(model.training)
        self.objective.progress = self.state.global_step / max(1, self.state.max_steps)
        # The Trainer's own autocast reaches the wrapped student only; evaluation stays in float32.
        with self.accelerator.autocast() if model.training else contextlib.nullcontext():
            raw = self.objective(model, inputs, self.model)
        weighted = {name: weight * raw[name] for name, weight in self.objective.weights().items()}
        if model.training:
            self.sums["micro_batches"] += 1
            for name, value in raw.items():
                if not torch.isfinite(value):
                    raise self._diverged(f"the term {name} is {value.item()}", self.state.global_step + 1)
                self.sums[name] += value.item()
                self.sums[f"weighted_{name}"] += weighted[name].item()
        return torch.stack([*weighted.values()]).sum()

    def _diverged(self, what: str, step: int) -> DivergedError:
        before = last_checkpoint(Path(self.args.output_dir))
        kept = "no checkpoint was saved before" if before is None else f"{before} is the last good checkpoint"
        return DivergedError(
            f"step {step}: {what}; expected a finite number; {kept}; look at the data, or begin another run "
            "with a lower learning_rate, from that checkpoint if you set student to it"
        )

    def _clip_grad_norm(self, model: Any) -> Any:
        """Also what DDP does not do for the objective's own parameters, and the check before the step."""
        own = [parameter for parameter in self.objective.parameters() if parameter.grad is not None]
        for parameter in own:
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        norm = float(self.accelerator.clip_grad_norm_([*model.parameters(), *own], self.args.max_grad_norm))
        if not math.isfinite(norm):
            raise self._diverged(f"the norm of the gradient is {norm}", self.state.global_step + 1)
        return norm

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            named = [*(self.model if model is None else model).named_parameters()]
            named += [(f"objective.{name}", value) for name, value in self.objective.named_parameters()]
            self.optimizer = build_optimizer(named, self.config, self.args.learning_rate)
        return self.optimizer

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Next-token loss of the held-out batches, in nats a counted token; every process looks at all."""
        total = count = 0.0
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.held_out:
                counted = int((batch["labels"][:, 1:] != NOT_COUNTED).sum())
                loss = self.compute_loss(self.model, self._prepare_inputs(batch))
                total, count = total + float(loss) * counted, count + counted
        self.model.train()
        metrics = {"eval_loss": total / max(count, 1.0)}
        if not math.isfinite(total):
            raise self._diverged(f"the held-out loss is {metrics['eval_loss']}", self.state.global_step)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def blend(self, step: int) -> float:
        """Lambda of an optimizer step, counted from 0."""
        return ramp(step, self.lambda_steps, self.config.lambda_shape)

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """With every training line, the means of all terms since the last one, over all processes."""
        if "loss" in logs and self.sums:
            self._collect()
            count = max(1.0, self.sums.pop("micro_batches"))  # 0 but in the first process
            logs |= {name: value / count for name, value in self.sums.items()}
            logs["loss"] = sum(value for name, value in logs.items() if name.startswith("weighted_"))
            logs["lambda"] = self.blend(self.state.global_step - 1)
            self.sums.clear()
            if self.objective.router is not None:
                used = self.objective.router.usage().to(self.args.device)
                self.objective.usage = self.accelerator.reduce(used, "mean").cpu()
        super().log(logs, *rest, **named)

    def _collect(self) -> None:
        """Move the sums of all processes to the first one: it writes the log and the checkpoints."""
        if self.args.world_size > 1 and self.sums:
            names = sorted(self.sums)
            mine = torch.tensor([self.sums[name] for name in names], dtype=torch.float64)
            whole = self.accelerator.reduce(mine.to(self.args.device), "sum")
            whole *= float(self.is_world_process_zero())
            self.sums.update(zip(names, whole.tolist(), strict=True))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's, with the objective's state; one that cannot be finished is removed."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter.detach()).all():
                raise self._diverged(f"after it {name} is not finite", self.state.global_step)
        self._collect()
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with whole_folder(folder, how_to_go_on(folder.parent)):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                save_file(self.objective.state(), folder / _OBJECTIVE)
                (folder / _SUMS).write_text(json.dumps(self.sums))
                (folder / _COMPLETE).touch()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder, own = Path(resume_from_checkpoint), self.objective.state()
        for name, value in load_file(folder / _OBJECTIVE).items():
            own[name].data.copy_(value)
        if self.is_world_process_zero():
            self.sums.update(json.loads((folder / _SUMS).read_text()))


class _EveryStep(TrainerCallback):  # type: ignore[misc]
    """Lambda before an optimizer step (it follows from the step alone), and the stop after one."""

    def __init__(self, trainer: StudentTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, _args: Any, state: Any, _control: Any, *, model: Any, **_: Any) -> None:
        self.trainer.objective.zero_grad()  # the Trainer does so for the model only
        set_blend(model, self.trainer.blend(state.global_step))

    def on_step_end(self, args: Any, _state: Any, control: Any, **_: Any) -> None:
        stop = self.trainer.stop
        if args.world_size > 1:  # all processes stop at the same step, whoever was asked
            flag = torch.tensor(float(stop.asked), device=args.device)
            stop.asked = bool(self.trainer.accelerator.reduce(flag, "sum") > 0)
        if stop.asked:
            control.should_save = control.should_training_stop = True


def last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint-<step> in ``folder``."""
    found = [path for path in folder.glob("checkpoint-*") if (path / _COMPLETE).exists()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def how_to_go_on(folder: Path) -> str:
    """What to do when the disk is full."""
    last = last_checkpoint(folder)
    kept = f"{last} is kept" if last else "no checkpoint was saved before"
    return f"{kept}; make room, then go on with --resume"


def remove_incomplete(folder: Path) -> None:
    """Remove checkpoints that a killed run left half-written."""
    for path in folder.glob("checkpoint-*"):
        if not (path / _COMPLETE).exists():
            shutil.rmtree(path)


def _arguments(config: TrainConfig, folder: Path, plan: BatchPlan, rate: float) -> TrainingArguments:
    """Our settings in the Trainer's words."""
    steps = plan.steps
    decay = {"num_decay_steps": round(config.decay_ratio * steps), "decay_type": config.schedule}
    arguments = TrainingArguments(
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
        restore_callback_states_from_checkpoint=True,  # the patience of early stopping
        report_to=config.report_to,
        ddp_find_unused_parameters=False,  # next_token uses all
        run_name=folder.name,
        disable_tqdm=True,
    )
    arguments.gradient_accumulation_steps = len(plan) // steps // arguments.world_size
    return arguments
