"""A float model of transformers becomes a ternary student: SubLN added, its projections quantized; and back.

Nothing else moves: the student is an instance of the teacher's own class, and what it saves is an ordinary
checkpoint of that class, which ``bitexport convert`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.packings import quantization_config
from bitexport.errors import UnsupportedError, UsageError
from bitexport.families import family_of
from bitexport.reference.loading import load_exactly
from bitexport.reference.norms import add_sub_norms, connect_norms, with_sub_norms
from bitexport.train.student.bitlinear import BitLinear, get_blend, set_blend
from bitexport.train.student.pack import FLOAT_HEAD, tokenizer_config, write_json

#: SmolLM2 is a LlamaForCausalLM.
STUDENTS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "HunYuanDenseV1ForCausalLM")
PROJECTIONS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
_SUB_NORMS = ("model.layers.0.self_attn.attn_sub_norm.weight", "model.layers.0.mlp.ffn_sub_norm.weight")


def make_student(model: Any) -> Any:
    """Turn a float model of transformers into a student, in place: SubLN of ones, seven BitLinear a layer.

    Raises:
        UnsupportedError: another class than :data:`STUDENTS`, or a configuration that convert would refuse.
        UsageError: it is a student already.
    """
    architecture = type(model).__name__
    if architecture not in STUDENTS:
        expected = f"expected {', '.join(STUDENTS)}: start from one of those"
        raise UnsupportedError(f"{architecture} cannot become a student; {expected}")
    if getattr(model, "sub_norms_added", False):
        raise UsageError("the model has SubLN already; expected a float model: train it on without surgery")
    names = (*model.state_dict(), *_SUB_NORMS)
    config = {**model.config.to_dict(), "architectures": [architecture]}
    family_of(config, names).hyperparameters(config, names)  # refuses now, not when training is over
    replace_projections(model)
    add_sub_norms(model)
    connect_norms(model)
    return model


def replace_projections(model: Any) -> None:
    """Make all seven projections of every layer BitLinear, in place, with the same parameters.

    ``model.config.quantization_config`` says so. UnsupportedError: a projection is missing or no plain linear
    layer; then nothing was changed.
    """
    modules = dict(model.model.layers.named_modules())
    names = [f"{number}.{name}" for number in range(len(model.model.layers)) for name in PROJECTIONS]
    for name in names:
        if type(modules.get(name)) is not nn.Linear:
            found = f"{type(model).__name__}: model.layers.{name} is {type(modules.get(name)).__name__}"
            expected = "an nn.Linear, as are all seven projections of a float model: start from one"
            raise UnsupportedError(f"{found}; expected {expected}")
    for name in names:
        linear = modules[name]
        bits = BitLinear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        bits.weight, bits.bias = linear.weight, linear.bias
        model.model.layers.set_submodule(name, bits.train(linear.training))
    model.config.quantization_config = dict(FLOAT_HEAD)


def calibrate(student: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """Set each SubLN gain such that the float student (blend 0) starts near its teacher.

    SubLN scales to RMS 1 what the teacher never scaled. The gain is the geometric mean, over tokens, of what
    the norm divides by: in many models the first token is hundreds of times larger than all others in some
    layer, and a root mean square over tokens would follow it. Measured with blend 0 and norms bypassed, which
    is the teacher itself: call it before any training.

    ``batches`` hold int64 ``input_ids`` and ``attention_mask`` ``[B, T]``; a mask of 0 is not counted.
    UsageError: no token to measure.
    """
    norms = [norm for x in student.model.layers for norm in (x.self_attn.attn_sub_norm, x.mlp.ffn_sub_norm)]
    logs: dict[nn.Module, list[torch.Tensor]] = {norm: [] for norm in norms}
    mask = torch.empty(0)

    def bypass(norm: nn.Module, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> torch.Tensor:
        squares = inputs[0][mask.bool()].square().mean(dim=-1)  # (tokens,)
        logs[norm].append((squares + student.config.rms_norm_eps).log().double() / 2)
        return inputs[0]

    hooks = [norm.register_forward_hook(bypass) for norm in norms]
    blend, training = get_blend(student), student.training
    set_blend(student.eval(), 0)
    try:
        with torch.no_grad():
            for batch in batches:
                ids, mask = (batch[key].to(student.device) for key in ("input_ids", "attention_mask"))
                student(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        set_blend(student.train(training), blend)
        for hook in hooks:
            hook.remove()
    if not sum(map(len, logs[norms[0]])):
        raise UsageError("the calibration batches hold no token; give at least one that is not padding")
    for norm in norms:
        nn.init.constant_(norm.weight, float(torch.cat(logs[norm]).mean().exp()))


def load_causal_lm(folder: str | Path) -> Any:
    """Load a checkpoint folder for training: float32, on the CPU, in evaluation mode.

    One with master weights (``quantization_config`` online) has BitLinear layers again, its SubLN connected.

    Raises:
        CheckpointError: transformers cannot load it, or its tensors are not exactly those of the model.
        UnsupportedError: transformers lacks its class, or it is packed, or has norms of use_rms_norm.
    """
    checkpoint = open_checkpoint(folder)
    quantization = quantization_config(checkpoint.config)
    architecture = str((checkpoint.config.get("architectures") or ["?"])[0])
    model_class = getattr(transformers, architecture, None)
    if model_class is None or not architecture.endswith("ForCausalLM"):
        known = "one of transformers' causal LMs"
        raise UnsupportedError(f"{folder}: architecture {architecture}; expected {known}")
    if quantization is not None:
        keys = ("linear_class", "quantization_mode", "use_rms_norm")
        found = [quantization.get(key) or False for key in keys]
        if found != (master := ["autobitlinear", "online", False]):
            expected = f"master weights, {master}: give the folder that was trained, not the packed one"
            raise UnsupportedError(f"{folder}: {', '.join(keys)} are {found}; expected {expected}")
        if architecture in STUDENTS and _SUB_NORMS[0] in checkpoint.tensors:
            model_class = with_sub_norms(model_class)
    model = load_exactly(model_class, checkpoint.path)
    if quantization is not None:
        replace_projections(model)
        connect_norms(model)
    return model


def save(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Save a student as an ordinary checkpoint of its class: float32 master weights, config, tokenizer."""
    model.config.use_cache = True  # the Trainer switches it off
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if type(tokenizer).__name__ == "TokenizersBackend":  # a name that transformers 4 does not know
        write_json(Path(folder) / "tokenizer_config.json", tokenizer_config(Path(folder)))
