"""The configuration of a run: one flat TOML file, every key typed, every unknown key an error."""

from __future__ import annotations

import difflib
import math
import sys
import typing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bitexport.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What ``python -m train pretrain`` needs to know. Keys without a default must be in the file."""

    # Where everything of the run goes: checkpoints, log, the finished model.
    run_dir: str

    # Text: Python sources.
    text_dir: str = ""  # a folder of them; empty: the standard library of the Python that runs the training
    held_out_percent: int = 5  # of the files, chosen by a hash of their path
    vocab_size: int = 4096  # <|endoftext|> and the 256 bytes included

    # Model: transformers' BitNetConfig under its own names.
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    hidden_act: str = "relu2"
    max_position_embeddings: int = 1024  # tokens
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    # Optimization. The learning rate rises for warmup_steps, stays, and falls to 0 over decay_steps.
    optimizer: str = "adamw"  # or "muon": Muon on the ternary matrices, AdamW on the rest
    sequence_length: int = 512  # tokens
    batch_size: int  # sequences per optimizer step
    micro_batch_size: int  # sequences per forward pass; divides batch_size
    max_steps: int  # optimizer steps
    warmup_steps: int
    decay_steps: int
    learning_rate: float  # at its highest
    weight_decay: float = 0.1  # on matrices and embeddings, not on norms
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    seed: int = 0

    # Machine.
    precision: str = "float32"  # or "bfloat16": mixed precision, master weights stay float32
    compile: bool = True  # torch.compile: slow first steps, fast others; needs a C++ compiler
    threads: int = 0  # 0: as many as torch chooses
    log_every: int = 10  # steps
    eval_every: int = 100  # steps
    eval_sequences: int = 64  # held-out sequences looked at during training; all of them at the end
    save_every: int = 50  # steps

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(PretrainConfig).items():
            value = getattr(self, name)
            if kind is float and type(value) is int:  # TOML's 1 is as good as 1.0
                object.__setattr__(self, name, float(value))
            elif type(value) is float and not math.isfinite(value):
                raise UsageError(f"config: {name} = {value}; expected a finite number")
            elif type(value) is not kind:
                raise UsageError(
                    f"config: {name} = {value!r} is a {type(value).__name__}; expected a {kind.__name__}"
                )
        self._check_ranges()

    def _check_ranges(self) -> None:
        self._require(bool(self.run_dir), "run_dir", "the name of a folder")
        self._require(0 < self.held_out_percent < 100, "held_out_percent", "1 to 99")
        self._require(self.vocab_size >= 257, "vocab_size", "at least 257: 256 bytes and <|endoftext|>")
        positive = (
            "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "rms_norm_eps rope_theta sequence_length batch_size micro_batch_size max_steps learning_rate "
            "max_grad_norm log_every eval_every eval_sequences save_every"
        )
        for name in positive.split():
            self._require(getattr(self, name) > 0, name, "a number above 0")
        for name in ("warmup_steps", "decay_steps", "weight_decay", "threads", "seed"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name, divisor in (
            ("hidden_size", "num_attention_heads"),
            ("num_attention_heads", "num_key_value_heads"),
            ("batch_size", "micro_batch_size"),
        ):
            self._require(getattr(self, name) % getattr(self, divisor) == 0, divisor, f"a divisor of {name}")
        fits = self.sequence_length <= self.max_position_embeddings
        self._require(fits, "sequence_length", "at most max_position_embeddings")
        fits = self.warmup_steps + self.decay_steps <= self.max_steps
        self._require(fits, "decay_steps", "together with warmup_steps at most max_steps")
        for name in ("adam_beta1", "adam_beta2"):
            self._require(0 <= getattr(self, name) < 1, name, "at least 0 and below 1")
        self._require(self.hidden_act in ("relu2", "silu"), "hidden_act", '"relu2" or "silu"')
        self._require(self.optimizer in ("adamw", "muon"), "optimizer", '"adamw" or "muon"')
        self._require(self.precision in ("float32", "bfloat16"), "precision", '"float32" or "bfloat16"')

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise UsageError(f"config: {name} = {getattr(self, name)!r}; expected {expected}")

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    def to_toml(self) -> str:
        """Every key with its value in force, so that a run can be repeated from this text alone."""
        return "".join(f"{name} = {_toml_value(value)}\n" for name, value in asdict(self).items())


def load_config(path: Path, **overrides: Any) -> PretrainConfig:
    """Read a TOML file; ``overrides`` win over it.

    Raises:
        UsageError: the file is missing or not TOML; a key is unknown, missing, or has a wrong type or value.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"config {path}: {error.strerror}; give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path}: not TOML: {error}") from error
    known = {field.name: field for field in fields(PretrainConfig)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(f"config {path}: unknown key {key}; {advice}")
    values.update({key: value for key, value in overrides.items() if value is not None})
    required = typing.cast(Any, PretrainConfig).__init__.__kwdefaults__ or {}
    missing = [key for key in known if key not in values and key not in required]
    if missing:
        raise UsageError(f"config {path}: missing {', '.join(missing)}; add it to the file")
    return PretrainConfig(**values)


def _toml_value(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
