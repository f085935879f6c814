"""The models of a stage: the one to train, its teacher, and their tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from bitexport.reference.model import load_tokenizer
from bitexport.text import read_sources, special_tokens_of, split
from bitexport.train.attention import CAUSAL
from bitexport.train.config import TrainConfig
from bitexport.train.data.bpe import save_tokenizer
from bitexport.train.data.loading import template_of
from bitexport.train.data.mixture import parse_mixture
from bitexport.train.log import Say
from bitexport.train.objective.objective import needs_teacher
from bitexport.train.run_folder import last_checkpoint, stage_folder
from bitexport.train.stage_settings import starting_model
from bitexport.train.student.bitlinear import BitLinear
from bitexport.train.student.checkpoint import load_causal_lm
from bitexport.train.student.diffusion import prepare_diffusion
from bitexport.train.student.fresh import build_model


@dataclass(frozen=True)
class StageModels:
    """The model to train, its teacher if a term of the loss needs one, and the tokenizer that they share."""

    student: Any
    teacher: Any | None
    tokenizer: Any


def load_models(config: TrainConfig, stage: str, say: Say = lambda _: None) -> StageModels:
    """The models of stage "pretrain", "2" or "3"; ``say`` is told of settings of a model that change.

    Raises:
        UsageError: the model that the stage starts from is missing, or the text is too short for a tokenizer.
        CheckpointError, UnsupportedError: a checkpoint cannot be loaded.
    """
    if stage == "pretrain":
        tokenizer = _pretraining_tokenizer(config)
        model: Any = build_model(config, tokenizer.eos_token_id)
        prepare_diffusion(model, tokenizer, config)
        model.set_attn_implementation(CAUSAL)
        return StageModels(model, None, tokenizer)
    start = starting_model(config, stage)
    student = load_causal_lm(start)
    tokenizer = load_tokenizer(start)
    prepare_diffusion(student, tokenizer, config, say)
    teacher = None
    if stage == "3" and needs_teacher(config):
        teacher = load_causal_lm(config.teacher)
    # Only transformers' eager attention returns its probabilities.
    implementation = "eager" if teacher is not None and config.attention_weight else CAUSAL
    for model in (student, teacher):
        if model is not None:
            model.set_attn_implementation(implementation)
    return StageModels(student, teacher, tokenizer)


def rebuild_model(config: TrainConfig, stage: str, tokenizer: Any) -> Any:
    """A model of the same class and shape as the one that the stage trains; its weights do not matter."""
    if stage == "pretrain":
        model = build_model(config, tokenizer.eos_token_id)
    else:
        model = load_causal_lm(starting_model(config, stage))
    prepare_diffusion(model, tokenizer, config)
    return model


def describe_parameters(model: nn.Module) -> str:
    """How many parameters are ternary and how many stay float."""
    total = sum(parameter.numel() for parameter in model.parameters())
    ternary = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, BitLinear))
    return f"{ternary:,} ternary parameters, {total - ternary:,} float"


def _pretraining_tokenizer(config: TrainConfig) -> Any:
    """The tokenizer of pretraining: trained on the training side, or kept if the run is resumed."""
    folder = Path(config.run_dir) / "tokenizer"
    state = PartialState()
    with state.main_process_first():
        is_new = last_checkpoint(stage_folder(config.run_dir, "pretrain")) is None
        if state.is_main_process and is_new:
            specs = parse_mixture(config.data).specs
            sides = split(read_sources(specs), config.held_out_percent, config.answers_are_labels)
            special_tokens = special_tokens_of(template_of(config))
            max_length = config.max_position_embeddings
            save_tokenizer(folder, sides.train, config.vocab_size, max_length, special_tokens)
    return load_tokenizer(folder)
