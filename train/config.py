"""The configuration of a run: one flat TOML file, every key typed, every unknown key an error."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitexport.train.settings import Settings, load_settings

CHOICES = {
    "architecture": ("llama", "bitnet"),
    "hidden_act": ("relu2", "silu"),
    "template": ("plain", "tags", "chat", "hy-mt1.5"),
    "optimizer": ("adamw", "muon"),
    "schedule": ("linear", "cosine"),
    "lambda_shape": ("linear", "cosine"),
    "relation_form": ("cosine", "scaled"),
    "precision": ("float32", "bfloat16"),
    "report_to": ("tensorboard", "wandb", "none"),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Everything a run needs to know. An empty string or 0 means: none, unless the comment says more."""

    run_dir: str  # where everything of the run goes: a folder a stage

    # Models: folders of checkpoints.
    teacher: str = ""  # full precision; stages 1 and 3
    student: str = ""  # start stages 2 and 3 from here instead of from what the stage before left

    # Data. A source is stdlib or kind:place; text, jsonl, parquet, parallel, gettext, hub: see
    # bitexport/text/sources.py
    data: list[str] = field(default_factory=lambda: ["stdlib"])  # pretraining and stage 3
    corpus: list[str] = field(default_factory=list)  # stage 2: documents, or pairs read as documents
    held_out_percent: int = 5  # of the records, chosen by a hash of what they say
    template: str = "plain"  # how a pair becomes prompt and answer: plain, tags, chat, hy-mt1.5
    source_language: str = "en"
    target_language: str = "fr"
    sequence_length: int = 512  # tokens: of a packed window; of the longest prompt with its answer

    # A model from scratch (--stage pretrain), under transformers' names.
    architecture: str = "bitnet"  # or llama
    ternary: bool = True  # false: full precision, a teacher
    vocab_size: int = 4096
    hidden_size: int = 0
    intermediate_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    hidden_act: str = "relu2"
    max_position_embeddings: int = 1024  # tokens
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    # How long: tokens, padding not counted. 0 tokens of stage 2: the student goes from stage 1 to stage 3.
    pretrain_tokens: int = 0
    stage2_tokens: int = 0
    stage3_tokens: int = 0

    # Stage 1.
    sub_norms: bool = True  # SubLN in front of o_proj and down_proj
    calibration_batches: int = 8  # of micro_batch_tokens, to set SubLN's gains by the teacher

    # Stage 3: weights of the terms; all but next_token at 0 is plain fine-tuning and needs no teacher.
    next_token_weight: float = 1.0
    logits_weight: float = 1.0
    logits_temperature: float = 5.0  # tau
    logits_tau_squared: bool = False  # times tau^2: the paper's formula has it not, its authors' code has
    logits_top_k: int = 0  # only the teacher's k most likely tokens; 0: all
    logit_projector: bool = False  # for a teacher with another vocabulary
    relation_weight: float = 1000.0
    relation_layer: int = -1  # the teacher's; -1: four fifths up
    relation_heads: int = 8
    relation_temperature: float = 1.0
    relation_form: str = "cosine"  # Algorithm 1 of BitNet Distillation; "scaled" is its equation 12
    feature_weight: float = 0.0
    attention_weight: float = 0.0
    contrastive_weight: float = 0.0
    curriculum: bool = False  # terms ramp up over training
    router: bool = False  # a mixture of teacher layers for each student layer in the feature term
    chunk_tokens: int = 0  # logits of so many tokens at once in next_token and top-k; 0: all

    # Optimization. The learning rate rises, stays, and falls to 0; ratios are of the steps.
    optimizer: str = "adamw"  # or muon: Muon on the matrices of the layers, AdamW on the rest
    learning_rate: float = 5e-5  # at its highest; of all stages unless one has its own
    stage2_learning_rate: float = 0.0
    stage3_learning_rate: float = 0.0
    warmup_ratio: float = 0.05
    decay_ratio: float = 0.5
    schedule: str = "linear"  # how it falls: linear or cosine
    weight_decay: float = 0.1  # on matrices and embeddings, not on norms and biases
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    batch_tokens: int = 4096  # of an optimizer step, over all processes, padding included
    micro_batch_tokens: int = 4096  # of a forward pass of one process
    lambda_warmup_ratio: float = 0.0  # quantization is blended in over this part of a stage's steps
    lambda_shape: str = "linear"
    early_stopping: bool = False
    seed: int = 0

    # Machine.
    precision: str = "float32"  # or bfloat16: mixed precision, master weights stay float32
    compile: bool = False  # torch.compile: slow first steps, fast others; needs a C++ compiler
    threads: int = 0  # 0: as many as torch chooses
    log_every: int = 100  # steps
    eval_every: int = 200  # steps
    eval_examples: int = 256  # held-out examples looked at during training
    save_every: int = 200  # steps
    report_to: str = "tensorboard"  # or wandb, none

    def check(self) -> None:
        need = self.require
        need(bool(self.run_dir), "run_dir", "the name of a folder")
        need(0 < self.held_out_percent < 100, "held_out_percent", "1 to 99")
        need(self.vocab_size >= 257, "vocab_size", "at least 257: 256 bytes and <|endoftext|>")
        positive = (
            "rms_norm_eps rope_theta sequence_length learning_rate max_grad_norm log_every eval_every "
            "eval_examples save_every logits_temperature relation_temperature relation_heads batch_tokens"
        )
        for name in positive.split():
            need(getattr(self, name) > 0, name, "a number above 0")
        need(self.relation_layer >= -1, "relation_layer", "-1 or the number of a layer")
        for name, value in asdict(self).items():
            if isinstance(value, (int, float)) and name != "relation_layer":
                need(value >= 0, name, "0 or more")
        for name, choices in CHOICES.items():
            need(getattr(self, name) in choices, name, " or ".join(f'"{choice}"' for choice in choices))
        for name in ("adam_beta1", "adam_beta2"):
            need(getattr(self, name) < 1, name, "at least 0 and below 1")
        for name in ("warmup_ratio", "decay_ratio", "lambda_warmup_ratio"):
            need(getattr(self, name) <= 1, name, "0 to 1")
        need(self.warmup_ratio + self.decay_ratio <= 1, "decay_ratio", "at most 1 with warmup_ratio")
        fits = self.micro_batch_tokens >= self.sequence_length
        need(fits, "micro_batch_tokens", "at least sequence_length")
        divides = self.batch_tokens % self.micro_batch_tokens == 0
        need(divides, "micro_batch_tokens", "a divisor of batch_tokens")

    def require_shape(self) -> None:
        """Raise UsageError when a size that a model from scratch needs is missing, or fits no other."""
        sizes = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
        for name in [*sizes.split(), "pretrain_tokens"]:
            self.require(getattr(self, name) > 0, name, "a number above 0, to train from scratch")
        wholes = {"num_attention_heads": "hidden_size", "num_key_value_heads": "num_attention_heads"}
        for part, whole in wholes.items():
            divides = getattr(self, whole) % getattr(self, part) == 0
            self.require(divides, part, f"a divisor of {whole}")
        fits = self.sequence_length <= self.max_position_embeddings
        self.require(fits, "sequence_length", "at most max_position_embeddings")


def load_config(path: Path, **overrides: Any) -> TrainConfig:
    """:func:`bitexport.train.settings.load_settings` of a run."""
    return load_settings(TrainConfig, path, **overrides)
