"""Pre-training from scratch, top to bottom: text, tokenizer, model, Trainer, result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import get_last_checkpoint

from bitexport.errors import OutputError, UsageError
from train.config import PretrainConfig, load_config
from train.corpus import load_corpus
from train.data import HeldOutWindows, TrainingWindows
from train.evaluate import perplexity
from train.model import build_model
from train.optimizer import MuonFactory
from train.tokenizer import encode_documents, train_tokenizer

Say = Callable[[str], None]


def pretrain(config: PretrainConfig, *, resume: bool = False, say: Say = print) -> Path:
    """Train a model and return the folder with its master weights, ``<run_dir>/master``.

    ``run_dir`` also receives config.toml (every setting), tokenizer/, log.jsonl, checkpoint-<step>/ for
    resuming, and result.json (held-out loss and perplexity of the finished model, in float32).

    Raises:
        OutputError: ``run_dir`` holds another run and ``resume`` is off.
        UsageError: nothing to resume, or the text is too short for one step.
    """
    run = Path(config.run_dir)
    checkpoint = prepare_run_folder(run, config, resume)
    say(config.to_toml())
    if config.threads:
        torch.set_num_threads(config.threads)

    corpus = load_corpus(config.held_out_percent, config.text_dir)
    tokenizer = tokenizer_of_run(run, config, corpus.train)
    train_tokens = encode_documents(tokenizer, corpus.train)
    held_out_tokens = encode_documents(tokenizer, corpus.held_out)
    say(
        f"text: {len(corpus.train)} files, {len(train_tokens):,} tokens; "
        f"held out: {len(corpus.held_out)} files, {len(held_out_tokens):,} tokens"
    )
    least = 2 * config.sequence_length
    if min(len(train_tokens), len(held_out_tokens)) < least:
        raise UsageError(
            f"corpus: fewer than {least} tokens on one side; shorten sequence_length or find more text"
        )

    model = build_model(config, tokenizer.eos_token_id)
    say(describe(model))
    if config.compile:
        model.compile()

    windows = config.max_steps * config.batch_size
    trainer = Trainer(
        model=model,
        args=training_arguments(config),
        processing_class=tokenizer,  # saved with every checkpoint
        data_collator=default_data_collator,  # all windows are of one length: nothing to pad
        train_dataset=TrainingWindows(train_tokens, config.sequence_length, windows, config.seed),
        eval_dataset=HeldOutWindows(held_out_tokens, config.sequence_length, config.eval_sequences),
        optimizer_cls_and_kwargs=(MuonFactory, {"config": config}) if config.optimizer == "muon" else None,
        callbacks=[JsonLog(run / "log.jsonl", config.tokens_per_step)],
    )
    # force_eager also stops transformers' quantizers from compiling themselves.
    with torch.compiler.set_stance("default" if config.compile else "force_eager"):
        trainer.train(resume_from_checkpoint=checkpoint)

    model.save_pretrained(run / "master")
    tokenizer.save_pretrained(run / "master")
    result = perplexity(run / "master", held_out_tokens, config.sequence_length)
    (run / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    say(f"held-out perplexity {result['perplexity']:.3f} over {result['tokens']:,} tokens")
    return run / "master"


def prepare_run_folder(run: Path, config: PretrainConfig, resume: bool) -> str | None:
    """Make the folder, keep the configuration in it, and find the checkpoint to go on from, if any."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        checkpoint = get_last_checkpoint(str(run))
        if resume and checkpoint is None:
            raise UsageError(f"{run}: no checkpoint to resume from; start without --resume")
        if not resume and (checkpoint or (run / "master").exists()):
            raise OutputError(f"{run}: holds a run already; add --resume to go on, or give another --run-dir")
        kept = run / "config.toml"
        if resume and kept.is_file():
            _refuse_another_run(kept, config)
        kept.write_text(config.to_toml(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{run}: {error.strerror}; give another --run-dir") from error
    return None if checkpoint is None else str(checkpoint)


def _refuse_another_run(kept: Path, config: PretrainConfig) -> None:
    """Raise UsageError when the run was begun with settings that change what it computes."""
    before, now = asdict(load_config(kept)), asdict(config)
    free = {"run_dir", "threads", "save_every", "eval_every", "max_steps", "compile"}
    for name in before.keys() - free:
        if before[name] != now[name]:
            raise UsageError(
                f"{kept.parent} was begun with {name} = {before[name]!r}, now it is {now[name]!r}; "
                "resume with what it was, or start another run with --run-dir"
            )


def tokenizer_of_run(run: Path, config: PretrainConfig, texts: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer saved with the run, or a new one: a resumed run must keep the ids that it began with."""
    folder = run / "tokenizer"
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = train_tokenizer(texts, config.vocab_size, config.max_position_embeddings)
    if len(tokenizer) != config.vocab_size:
        raise UsageError(
            f"config: vocab_size = {config.vocab_size}, but the text yields only {len(tokenizer)} tokens"
        )
    tokenizer.save_pretrained(folder)
    return tokenizer


def training_arguments(config: PretrainConfig) -> TrainingArguments:
    """Our settings in the Trainer's words."""
    return TrainingArguments(
        output_dir=config.run_dir,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        per_device_eval_batch_size=config.micro_batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": config.decay_steps, "decay_type": "linear"},
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        train_sampling_strategy="sequential",  # TrainingWindows shuffles
        dataloader_drop_last=True,  # one batch shape, hence one compilation
        logging_steps=config.log_every,
        eval_strategy="steps",
        eval_steps=config.eval_every,
        save_steps=config.save_every,
        save_total_limit=2,
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
    )


class JsonLog(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """One JSON object a line: ``step, tokens, seconds``, and then what was measured there.

    That is ``loss, grad_norm, learning_rate`` or ``held_out_loss``; losses are in nats a token.
    """

    def __init__(self, path: Path, tokens_per_step: int) -> None:
        self.path, self.tokens_per_step = path, tokens_per_step
        self.seconds_before = 0.0  # trained before this process
        self.start = time.monotonic()

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Forget lines after the checkpoint that is resumed: they are about to be written again."""
        lines = read_log(self.path) if self.path.exists() else []
        kept = [line for line in lines if line["step"] <= state.global_step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.seconds_before = max((line["seconds"] for line in kept), default=0.0)
        self.start = time.monotonic()

    def on_log(self, _args: Any, state: Any, _control: Any, *, logs: dict[str, float], **_: Any) -> None:
        line: dict[str, float] = {
            "step": state.global_step,
            "tokens": state.global_step * self.tokens_per_step,
            "seconds": round(self.seconds_before + time.monotonic() - self.start, 1),
        }
        if "eval_loss" in logs:
            line["held_out_loss"] = logs["eval_loss"]
        elif "loss" in logs:
            line |= {key: logs[key] for key in ("loss", "grad_norm", "learning_rate")}
        else:
            return  # the Trainer's own summary at the end
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a run's log.jsonl, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def describe(model: torch.nn.Module) -> str:
    """How many parameters are ternary, how many stay float."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    ternary = sum(size for name, size in sizes.items() if name.endswith("_proj.weight"))
    return f"model: {ternary:,} ternary parameters, {sum(sizes.values()) - ternary:,} float"
