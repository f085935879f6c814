"""Our configuration in the terms of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import BatchPlan


def training_arguments(
    config: TrainConfig, folder: Path, plan: BatchPlan, learning_rate: float
) -> TrainingArguments:
    """Arguments to train on ``plan`` into ``folder``."""
    steps = plan.steps
    arguments = TrainingArguments(
        output_dir=str(folder),
        run_name=folder.name,
        max_steps=steps,
        per_device_train_batch_size=1,  # an item of the plan is a complete micro-batch
        train_sampling_strategy="sequential",  # the plan shuffles
        remove_unused_columns=False,
        learning_rate=learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": round(config.decay_ratio * steps),
            "decay_type": config.schedule,
        },
        warmup_steps=round(config.warmup_ratio * steps),
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # the trainer stops at such a loss
        eval_strategy="steps",
        eval_steps=config.eval_every,
        save_steps=config.save_every,
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,  # the patience of early stopping
        report_to=config.report_to,
        gradient_checkpointing=config.activation_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,  # the next-token loss uses all
        disable_tqdm=True,
    )
    micro_batches_per_step = len(plan) // steps
    arguments.gradient_accumulation_steps = micro_batches_per_step // arguments.world_size
    return arguments
