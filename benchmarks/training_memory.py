"""What distillation of a published shape holds in memory: parameters, and bytes kept for the backward pass.

Usage: training_memory.py [--tokens 128]

Parameters are counted on models without memory. What a micro-batch keeps for the backward pass is measured:
every tensor that autograd saves in the objective of stage 3 (parameters apart), on models of the true widths
with 1 and 2 layers, two small vocabularies and two lengths. Their differences are bytes a token and layer,
bytes a token and entry of the vocabulary, and bytes a layer whatever the tokens. bfloat16 is mixed as
accelerate does it. On the CPU: a GPU's attention may keep other tensors.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch.autograd.graph import saved_tensors_hooks
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from bitexport.train.config import TrainConfig
from bitexport.train.objective.objective import Objective
from bitexport.train.student.bitlinear import BitLinear
from bitexport.train.student.surgery import make_student

HEADS = {"num_attention_heads": 16, "head_dim": 128, "tie_word_embeddings": True}
# Sizes as the checkpoints' config.json has them.
SHAPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "Qwen3-0.6B": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {
            **HEADS,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "vocab_size": 151_936,
        },
    ),
    "HY-MT1.5-1.8B": (
        HunYuanDenseV1ForCausalLM,
        HunYuanDenseV1Config,
        {
            **HEADS,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 32,
            "num_key_value_heads": 4,
            "vocab_size": 120_818,
        },
    ),
}
FORMS: dict[str, dict[str, Any]] = {
    "stage 2": {"logits_weight": 0.0, "relation_weight": 0.0},
    "stage 2, chunked": {"logits_weight": 0.0, "relation_weight": 0.0, "chunk_tokens": 64},
    "stage 3": {},
    "stage 3, top-k": {"logits_top_k": 256},
    "stage 3, top-k, chunked": {"logits_top_k": 256, "chunk_tokens": 64},
}


def make(name: str, **changes: int) -> Any:
    """A model of the shape ``name``, with random weights on the default device."""
    model_class, config_class, sizes = SHAPES[name]
    return model_class(config_class(**(sizes | changes), attn_implementation="sdpa"))


def parameters(name: str) -> str:
    """How many there are: of the teacher, of its student, ternary among these."""
    with torch.device("meta"):
        teacher, student = make(name), make_student(make(name))
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (teacher, student)]
    counts.append(sum(m.weight.numel() for m in student.modules() if isinstance(m, BitLinear)))
    return "{}: teacher {:,}, student {:,}, ternary {:,}".format(name, *counts)


def kept(name: str, form: dict[str, Any], tokens: int, layers: int, vocabulary: int) -> int:
    """Bytes that the objective keeps for the backward pass of two rows of ``tokens`` / 2, all counted."""
    sizes = {"num_hidden_layers": layers, "vocab_size": vocabulary}
    teacher, student = make(name, **sizes), make_student(make(name, **sizes))
    config = TrainConfig(run_dir="unused", **form)
    objective = Objective(config, student, teacher if config.logits_weight else None)
    student.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(student.forward))
    ids = torch.randint(3, vocabulary, (2, tokens // 2))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    own = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        total = objective(student, batch, student).total()
    assert torch.isfinite(total)
    return sum(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=128, help="of a micro-batch")
    tokens = parser.parse_args().tokens
    torch.manual_seed(0)
    for name in SHAPES:
        print(parameters(name))
    print("| shape | form | a token and layer | a token and entry of the vocabulary | a layer |")
    print("| --- | --- | --- | --- | --- |")
    for name in SHAPES:
        for form, settings in FORMS.items():
            found = {
                (many, layers, vocabulary): kept(name, settings, many, layers, vocabulary)
                for many in (tokens, 2 * tokens)
                for layers, vocabulary in ((1, 2000), (2, 2000), (1, 4000))
            }
            of_layer, long_layer = (found[t, 2, 2000] - found[t, 1, 2000] for t in (tokens, 2 * tokens))
            of_words, long_words = (found[t, 1, 4000] - found[t, 1, 2000] for t in (tokens, 2 * tokens))
            a_layer = (long_layer - of_layer) / tokens
            entry = (long_words - of_words) / 2000 / tokens
            print(f"| {name} | {form} | {a_layer:,.0f} | {entry:.2f} | {of_layer - a_layer * tokens:,.0f} |")


if __name__ == "__main__":
    main()
