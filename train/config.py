"""The configuration of a run: one flat TOML file, every key typed, every unknown key an error."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitexport.checkpoint.block_diffusion import MAX_BLOCK
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
    "compile": ("auto", "layers", "off"),
    "packing": ("auto", "on", "off"),
    "report_to": ("tensorboard", "wandb", "none"),
}
_POSITIVE = (
    "rms_norm_eps",
    "rope_theta",
    "sequence_length",
    "learning_rate",
    "max_grad_norm",
    "log_every",
    "eval_every",
    "eval_examples",
    "save_every",
    "logits_temperature",
    "relation_temperature",
    "relation_heads",
    "batch_tokens",
)
_NEEDED_FROM_SCRATCH = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "pretrain_tokens",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """All settings of a run. An empty string or 0 means none, unless the comment says otherwise.

    scripts/config_reference.py turns the comments into docs/config.md.
    """

    run_dir: str  # the folder of the run, with a folder per stage

    # Models: folders of checkpoints.
    teacher: str = ""  # the full-precision model; stages 1 and 3
    student: str = ""  # starts stage 2 or 3 from this model, also a packed one, not from the stage before

    # Data. A source is `stdlib` or `kind:place`, where kind is text, jsonl, parquet, parallel, gettext or
    # hub; `kind:place @ 0.7` gives it a weight; see [training.md](training.md#text).
    data: list[str] = field(default_factory=lambda: ["stdlib"])  # sources of pretraining and stage 3
    corpus: list[str] = field(default_factory=list)  # sources of stage 2; pairs are read as documents
    data_cache: str = ""  # the folder of the tokens, for several runs with the same data; "": run_dir/data
    held_out_percent: int = 5  # percentage of the records, chosen by a hash of their text
    answers_are_labels: bool = False  # answers recur: only prompts decide what is held out
    template: str = "plain"  # turns a pair into prompt and answer
    source_language: str = "en"  # for the templates tags and hy-mt1.5
    target_language: str = "fr"  # for the templates tags and hy-mt1.5
    sequence_length: int = 512  # tokens of a packed window, or of the longest prompt with its answer

    # A model from scratch (`--stage pretrain`), with the names of transformers' configuration.
    architecture: str = "bitnet"
    ternary: bool = True  # false trains in full precision, for a teacher
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

    # Length of each stage, in tokens without padding.
    pretrain_tokens: int = 0
    stage2_tokens: int = 0  # 0 skips stage 2
    stage3_tokens: int = 0

    # Stage 1.
    sub_norms: bool = True  # adds SubLN in front of o_proj and down_proj
    calibration_batches: int = 8  # batches of micro_batch_tokens that set SubLN's gains; 0 leaves them at 1

    # Stage 3: the terms of the loss and their weights. With only next_token above 0 it is plain fine-tuning
    # and needs no teacher.
    next_token_weight: float = 1.0
    logits_weight: float = 1.0
    logits_temperature: float = 5.0  # tau
    logits_tau_squared: bool = False  # a factor tau^2: not in the paper's formula, but in its authors' code
    logits_top_k: int = 0  # compares only the teacher's k most likely tokens; 0: all
    logit_projector: bool = False  # for a teacher with another vocabulary
    relation_weight: float = 1000.0
    relation_layer: int = -1  # number of the teacher's layer; -1: four fifths of the way up
    relation_heads: int = 8
    relation_temperature: float = 1.0
    relation_form: str = "cosine"  # Algorithm 1 of BitNet Distillation; "scaled" is its equation 12
    feature_weight: float = 0.0
    attention_weight: float = 0.0
    contrastive_weight: float = 0.0
    curriculum: bool = False  # ramps the terms up over the stage
    router: bool = False  # learns a mixture of teacher layers for each student layer in the feature term
    chunk_tokens: int = 0  # computes logits of this many tokens at a time, in next_token and top-k; 0: all

    # Block diffusion, in every stage that trains: a term in addition to those above, with which the student
    # learns to fill in a block of tokens at once; see [block-diffusion.md](block-diffusion.md).
    diffusion_weight: float = 0.0  # weight of the term; 0 trains an ordinary model
    diffusion_block_size: int = 0  # tokens; 0: those of the model if it has been trained so, otherwise 8
    diffusion_mask_token: str = ""  # text of the mask token; "": the tokenizer's own, or a new <|mask|>
    diffusion_complementary: bool = True  # two noisy copies of a text, so that every token is masked in one
    diffusion_min_masked: float = 0.001  # smallest fraction of a block's tokens that are masked
    diffusion_max_masked: float = 1.0  # largest
    diffusion_warmup_ratio: float = 0.0  # fraction of a stage's steps over which the weight rises from 0

    # Optimization. The learning rate rises, stays, and falls to 0; ratios are fractions of a stage's steps.
    optimizer: str = "adamw"  # "muon" uses Muon for the matrices of the layers and AdamW for the rest
    learning_rate: float = 5e-5  # the highest value; used by every stage that has no rate of its own
    stage2_learning_rate: float = 0.0  # 0: learning_rate
    stage3_learning_rate: float = 0.0  # 0: learning_rate
    warmup_ratio: float = 0.05
    decay_ratio: float = 0.5
    schedule: str = "linear"  # shape of the decay
    weight_decay: float = 0.1  # on matrices and embeddings, not on norms and biases
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    batch_tokens: int = 4096  # tokens of an optimizer step over all processes, including padding
    micro_batch_tokens: int = 4096  # tokens of a forward pass in one process, including padding
    lambda_warmup_ratio: float = 0.0  # fraction of a stage's steps over which quantization is blended in
    lambda_shape: str = "linear"  # shape of that blend
    early_stopping: bool = False  # ends a stage when the held-out loss no longer improves
    seed: int = 0

    # Machine.
    precision: str = "float32"  # "bfloat16" is mixed precision; master weights stay float32
    compile: str = "auto"  # "layers" compiles the layers with torch.compile, "off" does not; "auto": on GPUs
    packing: str = "auto"  # "on" packs prompts with answers into rows of sequence_length; "auto": if compiled
    activation_checkpointing: bool = False  # computes the layers twice, to keep less for the backward pass
    threads: int = 0  # CPU threads; 0: torch decides
    log_every: int = 100  # steps
    eval_every: int = 200  # steps
    eval_examples: int = 256  # held-out examples evaluated during training
    save_every: int = 200  # steps
    report_to: str = "tensorboard"

    def __post_init__(self) -> None:
        # Runs of earlier versions have a bool, which compiled the whole model.
        compiled: object = self.compile
        if isinstance(compiled, bool):
            object.__setattr__(self, "compile", "layers" if compiled else "auto")
        super().__post_init__()

    def check(self) -> None:
        """Raise UsageError for the first value that is out of range or does not fit another."""
        self.require(self.run_dir != "", "run_dir", "the name of a folder")
        self.require(0 < self.held_out_percent < 100, "held_out_percent", "1 to 99")
        self.require(self.vocab_size >= 257, "vocab_size", "at least 257: 256 bytes and <|endoftext|>")
        self._check_signs()
        self._check_choices()
        self._check_ratios()
        self._check_batches()
        self._check_diffusion()

    def check_shape(self) -> None:
        """Check the sizes of a model from scratch.

        Raises:
            UsageError: a size is missing or does not fit another.
        """
        for name in _NEEDED_FROM_SCRATCH:
            self.require(getattr(self, name) > 0, name, "a number above 0, to train from scratch")
        self.require(
            self.hidden_size % self.num_attention_heads == 0,
            "num_attention_heads",
            "a divisor of hidden_size",
        )
        self.require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            "a divisor of num_attention_heads",
        )
        self.require(
            self.sequence_length <= self.max_position_embeddings,
            "sequence_length",
            "at most max_position_embeddings",
        )

    def _check_signs(self) -> None:
        for name in _POSITIVE:
            self.require(getattr(self, name) > 0, name, "a number above 0")
        self.require(self.relation_layer >= -1, "relation_layer", "-1 or the number of a layer")
        for name, value in asdict(self).items():
            if isinstance(value, (int, float)) and name != "relation_layer":
                self.require(value >= 0, name, "0 or more")

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            expected = " or ".join(f'"{choice}"' for choice in choices)
            self.require(getattr(self, name) in choices, name, expected)

    def _check_ratios(self) -> None:
        for name in ("adam_beta1", "adam_beta2"):
            self.require(getattr(self, name) < 1, name, "at least 0 and below 1")
        for name in ("warmup_ratio", "decay_ratio", "lambda_warmup_ratio", "diffusion_warmup_ratio"):
            self.require(getattr(self, name) <= 1, name, "0 to 1")
        fits = self.warmup_ratio + self.decay_ratio <= 1
        self.require(fits, "decay_ratio", "at most 1 together with warmup_ratio")

    def _check_diffusion(self) -> None:
        size = self.diffusion_block_size
        is_size = size == 0 or 2 <= size <= MAX_BLOCK
        self.require(is_size, "diffusion_block_size", f"2 to {MAX_BLOCK}, or 0 for the model's own")
        in_order = 0 <= self.diffusion_min_masked <= self.diffusion_max_masked <= 1
        self.require(in_order, "diffusion_max_masked", "at least diffusion_min_masked and at most 1")
        fits = not self.diffusion_weight or size < self.sequence_length
        self.require(fits, "diffusion_block_size", "less than sequence_length")

    def _check_batches(self) -> None:
        fits = self.micro_batch_tokens >= self.sequence_length
        self.require(fits, "micro_batch_tokens", "at least sequence_length")
        divides = self.batch_tokens % self.micro_batch_tokens == 0
        self.require(divides, "micro_batch_tokens", "a divisor of batch_tokens")


def load_config(path: str | Path, **overrides: Any) -> TrainConfig:
    """Read the configuration of a run; ``overrides`` that are not None replace values of the file.

    Raises:
        UsageError: see :func:`bitexport.train.settings.load_settings`.
    """
    return load_settings(TrainConfig, Path(path), **overrides)
