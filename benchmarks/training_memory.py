"""Memory of distillation at a published shape: parameters, and bytes kept for the backward pass.

Usage: python -m benchmarks.training_memory [--tokens 128]

Parameters are counted on models without memory. The bytes that a micro-batch keeps for the backward pass are
measured: every tensor that autograd saves in the objective of stage 3 (except parameters), on models of the
true widths with 1 and 2 layers, two small vocabularies and two lengths. Their differences are bytes per token
and layer, bytes per token and vocabulary entry, and bytes per layer independent of the tokens. Mixed
precision with bfloat16 is accelerate's. On the CPU: attention on a GPU may keep other tensors.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.published_shapes import PUBLISHED_SHAPES as SHAPES
from bitexport.train.config import TrainConfig
from bitexport.train.objective.objective import Objective
from bitexport.train.student.bitlinear import BitLinear
from bitexport.train.student.surgery import make_student

FORMS: dict[str, dict[str, Any]] = {
    "stage 2": {"logits_weight": 0.0, "relation_weight": 0.0},
    "stage 2, chunked": {"logits_weight": 0.0, "relation_weight": 0.0, "chunk_tokens": 64},
    "stage 3": {},
    "stage 3, top-k": {"logits_top_k": 256},
    "stage 3, top-k, chunked": {"logits_top_k": 256, "chunk_tokens": 64},
}


def make(name: str, **changes: int) -> Any:
    """A model of shape ``name`` with random weights on the default device."""
    model_class, config_class, sizes = SHAPES[name]
    return model_class(config_class(**(sizes | changes), attn_implementation="sdpa"))


def parameters(name: str) -> str:
    """A line: the numbers of parameters of teacher and student, and how many of the latter are ternary."""
    with torch.device("meta"):
        teacher, student = make(name), make_student(make(name))
    teacher_count = sum(parameter.numel() for parameter in teacher.parameters())
    student_count = sum(parameter.numel() for parameter in student.parameters())
    ternary_count = sum(layer.weight.numel() for layer in student.modules() if isinstance(layer, BitLinear))
    return f"{name}: teacher {teacher_count:,}, student {student_count:,}, ternary {ternary_count:,}"


def kept(name: str, form: dict[str, Any], tokens: int, layers: int, vocabulary: int) -> int:
    """Bytes that the objective keeps for the backward pass of two rows of ``tokens`` / 2, all counted."""
    sizes = {"num_hidden_layers": layers, "vocab_size": vocabulary}
    teacher, student = make(name, **sizes), make_student(make(name, **sizes))
    config = TrainConfig(run_dir="unused", **form)
    objective = Objective(config, student, teacher if config.logits_weight else None)
    student.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(student.forward))
    ids = torch.randint(3, vocabulary, (2, tokens // 2))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    parameter_storages = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    saved_bytes: dict[int, int] = {}  # by address of the storage

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameter_storages:
            saved_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(record, lambda tensor: tensor):
        terms = objective(student, batch, student)
        total = torch.stack([weight * terms[name] for name, weight in objective.weights().items()]).sum()
    assert torch.isfinite(total)
    return sum(saved_bytes.values())


def slopes(name: str, settings: dict[str, Any], tokens: int) -> tuple[float, float, float]:
    """Bytes per token and layer, per token and vocabulary entry, and per layer independent of the tokens."""
    layer_bytes = []  # of one layer, with ``tokens`` and twice as many
    vocabulary_bytes = []  # of 2,000 entries
    for length in (tokens, 2 * tokens):
        small = kept(name, settings, length, 1, 2000)
        layer_bytes.append(kept(name, settings, length, 2, 2000) - small)
        vocabulary_bytes.append(kept(name, settings, length, 1, 4000) - small)
    per_token_and_layer = (layer_bytes[1] - layer_bytes[0]) / tokens
    per_token_and_entry = (vocabulary_bytes[1] - vocabulary_bytes[0]) / 2000 / tokens
    return per_token_and_layer, per_token_and_entry, layer_bytes[0] - per_token_and_layer * tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a micro-batch")
    tokens = parser.parse_args().tokens
    torch.manual_seed(0)
    for name in SHAPES:
        print(parameters(name))
    print("| shape | form | per token and layer | per token and vocabulary entry | per layer |")
    print("| --- | --- | --- | --- | --- |")
    for name in SHAPES:
        for form, settings in FORMS.items():
            per_token_and_layer, per_token_and_entry, per_layer = slopes(name, settings, tokens)
            figures = f"{per_token_and_layer:,.0f} | {per_token_and_entry:.2f} | {per_layer:,.0f}"
            print(f"| {name} | {form} | {figures} |")


if __name__ == "__main__":
    main()
