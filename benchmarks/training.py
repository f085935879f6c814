"""Speed of a training step: tokens/s, TFLOP/s, and where the time goes.

Usage: python -m benchmarks.training [--shape tiny] [--stage 2] [--steps 10] [--json]

Models of the shape have random weights, the data random tokens in pairs as long as sentences (stage 3) or
windows (stage 2). The first measurement runs steps as training does, without waiting for the device between
them. The second one waits after every phase: data, forward (student and losses), teacher, backward,
optimizer. The peak is that of one large matrix product in the same precision. TFLOP/s count 6 N operations
per token, and 2 N for the teacher, N all parameters; padding is not counted.

On an accelerator: python -m benchmarks.training --shape qwen3-0.6b --stage 2, and --stage 3 --top-k 256.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.published_shapes import PUBLISHED_SHAPES, Shape
from bitexport.train.attention import CAUSAL
from bitexport.train.batch import Batch
from bitexport.train.compiling import compile_layers, compiles, packs
from bitexport.train.config import TrainConfig
from bitexport.train.data.batches import BatchPlan
from bitexport.train.data.examples import ListedExamples, WindowedExamples
from bitexport.train.objective.objective import Objective
from bitexport.train.optimizer import build_optimizer
from bitexport.train.student.bitlinear import hold_quantized, release_quantized
from bitexport.train.student.surgery import make_student

_TINY = {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
_SIZES = {**_TINY, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 4096}
SHAPES: dict[str, Shape] = {
    "tiny": (Qwen3ForCausalLM, Qwen3Config, _SIZES),
    **{name.lower(): shape for name, shape in PUBLISHED_SHAPES.items()},
}
PHASES = ("data", "forward", "teacher", "backward", "optimizer")


class Step:
    """An optimizer step as :class:`bitexport.train.trainer.StudentTrainer` makes it, with a clock in it."""

    def __init__(self, config: TrainConfig, shape: str, stage: str) -> None:
        model_class, config_class, sizes = SHAPES[shape]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        shape_config = config_class(**sizes, max_position_embeddings=4096)
        with self.device:
            self.student = make_student(model_class(shape_config))
            self.teacher = model_class(shape_config) if stage == "3" else None
        self.models = [model for model in (self.student, self.teacher) if model is not None]
        for model in self.models:
            model.set_attn_implementation(CAUSAL)
            if compiles(config):
                compile_layers(model)
        if config.activation_checkpointing:
            self.student.gradient_checkpointing_enable({"use_reentrant": False})
        self.config = config
        self.objective = Objective(config, self.student, self.teacher).to(self.device)
        self.optimizer = build_optimizer(list(self.student.named_parameters()), config, 1e-5)
        self.plan = _plan(config, stage, sizes["vocab_size"])
        self.per_step = config.batch_tokens // config.micro_batch_tokens
        self.autocast = torch.bfloat16 if config.precision == "bfloat16" else None
        self.seconds: dict[str, float] = defaultdict(float)
        self.timed = False
        self.at = 0
        self.tokens = 0
        self.slots = 0

    def run(self) -> None:
        self.student.train()
        self.objective.train()
        if self.per_step > 1:
            hold_quantized(self.student, self.autocast)
        for _ in range(self.per_step):
            with self._clock("data"):
                batch = self.plan[self.at % len(self.plan)]
                self.at += 1
                self.tokens += int(batch["attention_mask"].bool().sum())
                self.slots += batch["attention_mask"].numel()
                batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            loss = self._loss(batch)
            with self._clock("backward"):
                (loss / self.per_step).backward()
        release_quantized(self.student)
        with self._clock("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _loss(self, batch: Batch) -> torch.Tensor:
        before = self.seconds["teacher"]
        with self._teacher_clock(), self._clock("forward"):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast is not None):
                terms = self.objective(self.student, batch, self.student)
            weights = self.objective.weights()
            loss = torch.stack([weights[name] * terms[name] for name in terms]).sum()
        self.seconds["forward"] -= self.seconds["teacher"] - before
        return loss

    @contextlib.contextmanager
    def _teacher_clock(self) -> Iterator[None]:
        """Measure the teacher's forward pass, which the objective calls."""
        if self.teacher is None or not self.timed:
            yield
            return
        forward: Callable[..., Any] = self.teacher.forward

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._clock("teacher"):
                return forward(*args, **kwargs)

        self.teacher.forward = timed
        try:
            yield
        finally:
            self.teacher.forward = forward

    @contextlib.contextmanager
    def _clock(self, phase: str) -> Iterator[None]:
        if not self.timed:
            yield
            return
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.seconds[phase] += time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(config: TrainConfig, shape: str, stage: str, steps: int) -> dict[str, Any]:
    """The figures of one configuration."""
    began = time.perf_counter()
    step = Step(config, shape, stage)
    with torch.compiler.set_stance("default" if compiles(config) else "force_eager"):
        step.run()
        step.wait()
        first = time.perf_counter() - began
        for _ in range(2):
            step.run()
        step.wait()
        step.tokens = step.slots = 0
        start = time.perf_counter()
        for _ in range(steps):
            step.run()
        step.wait()
        seconds = time.perf_counter() - start
        tokens, slots = step.tokens, step.slots
        step.timed = True
        for _ in range(max(1, steps // 2)):
            step.run()
    parameters = sum(parameter.numel() for parameter in step.student.parameters())
    flops = parameters * (6 + 2 * (stage == "3")) * tokens / seconds
    peak = matrix_peak(step.device, step.autocast or torch.float32)
    total = sum(step.seconds[phase] for phase in PHASES)
    return {
        "shape": shape,
        "stage": stage,
        "device": torch.cuda.get_device_name() if step.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "compiled": compiles(config),
        "packed": step.plan.width > 0,
        "parameters": parameters,
        "first_step_seconds": first,
        "step_seconds": seconds / steps,
        "tokens_per_second": tokens / seconds,
        "padding": 1 - tokens / slots,
        "tflops": flops / 1e12,
        "peak_tflops": peak / 1e12,
        "share_of_peak": flops / peak,
        "share_of_step": {phase: step.seconds[phase] / total for phase in PHASES},
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if step.device.type == "cuda" else None,
    }


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of one large product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _plan(config: TrainConfig, stage: str, vocabulary: int) -> BatchPlan:
    random = np.random.default_rng(0)
    examples: ListedExamples | WindowedExamples
    if stage == "2":
        examples = WindowedExamples(random.integers(0, vocabulary, 2_000_000), config.sequence_length, 0)
    else:
        # Prompt and answer of a translation: a log-normal distribution with a mean of about 60 tokens.
        lengths = np.clip(random.lognormal(3.9, 0.6, 20_000).astype(int), 8, config.sequence_length)
        tokens = [random.integers(0, vocabulary, length).tolist() for length in lengths]
        examples = ListedExamples([(ids, [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]) for ids in tokens])
    is_fixed = packs(config) if stage == "3" else compiles(config)
    return BatchPlan(
        examples,
        micro_tokens=config.micro_batch_tokens,
        per_step=config.batch_tokens // config.micro_batch_tokens,
        budget=500_000,
        seed=0,
        pad_id=0,
        width=config.sequence_length if is_fixed else 0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--stage", choices=("2", "3"), default="2")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--micro-batch-tokens", type=int, default=0, help="default: 4096, tiny 1024")
    parser.add_argument("--micro-batches", type=int, default=1, help="per step")
    parser.add_argument("--top-k", type=int, default=0, help="logits_top_k, with chunks of 256 tokens")
    parser.add_argument("--compile", choices=("auto", "layers", "off"), default="auto")
    parser.add_argument("--packing", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--checkpointing", action="store_true", help="activation_checkpointing")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    micro = options.micro_batch_tokens or (1024 if options.shape == "tiny" else 4096)
    with TemporaryDirectory() as folder:
        config = TrainConfig(
            run_dir=folder,
            sequence_length=256 if options.shape == "tiny" else 512,
            micro_batch_tokens=micro,
            batch_tokens=micro * options.micro_batches,
            logits_top_k=options.top_k,
            chunk_tokens=256 if options.top_k else 0,
            relation_heads=4 if options.shape == "tiny" else 8,
            compile=options.compile,
            packing=options.packing,
            activation_checkpointing=options.checkpointing,
            precision=options.precision or ("bfloat16" if torch.cuda.is_available() else "float32"),
        )
        found = measure(config, options.shape, options.stage, options.steps)
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
