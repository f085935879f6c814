"""Turns a float model of transformers into a ternary student: SubLN added, its projections quantized.

Nothing else changes: in training, the student is an instance of the teacher's class. ``saved_form`` says as
which class it is saved.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from bitexport.errors import UnsupportedError, UsageError
from bitexport.families import family_of
from bitexport.reference.norms import add_sub_norms, connect_norms
from bitexport.train.student.bitlinear import BitLinear
from bitexport.train.student.pack import FLOAT_HEAD
from bitexport.train.student.saved_form import STUDENTS

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_SUB_NORMS_OF_FIRST_LAYER = (
    "model.layers.0.self_attn.attn_sub_norm.weight",
    "model.layers.0.mlp.ffn_sub_norm.weight",
)


def make_student(model: Any) -> Any:
    """Turn a float model into a student, in place: SubLN with gain 1, seven BitLinear per layer.

    Raises:
        UnsupportedError: its class is not one of :data:`STUDENTS`, or convert would reject its configuration.
        UsageError: it is already a student.
    """
    architecture = type(model).__name__
    if architecture not in STUDENTS:
        expected = f"expected {', '.join(STUDENTS)}: start from one of those"
        raise UnsupportedError(f"{architecture} cannot become a student; {expected}")
    if getattr(model, "sub_norms_added", False):
        raise UsageError(
            "the model already has SubLN; expected a float model: continue training it without surgery"
        )
    _check_convertible(model, architecture)
    replace_projections(model)
    add_sub_norms(model)
    connect_norms(model)
    return model


def replace_projections(model: Any) -> None:
    """Make all seven projections of every layer BitLinear, in place, with the same parameters.

    Also sets ``model.config.quantization_config``.

    Raises:
        UnsupportedError: a projection is missing or not a plain linear layer; nothing is changed then.
    """
    layers = model.model.layers
    modules = dict(layers.named_modules())
    names = [f"{number}.{projection}" for number in range(len(layers)) for projection in PROJECTIONS]
    for name in names:
        kind = type(modules.get(name))
        if kind is not nn.Linear:
            found = f"{type(model).__name__}: model.layers.{name} is {kind.__name__}"
            expected = "an nn.Linear, as are all seven projections of a float model: start from one"
            raise UnsupportedError(f"{found}; expected {expected}")
    for name in names:
        layers.set_submodule(name, _as_bit_linear(modules[name]))
    model.config.quantization_config = dict(FLOAT_HEAD)


def _check_convertible(model: Any, architecture: str) -> None:
    """Raise now what convert would raise after training."""
    tensor_names = (*model.state_dict(), *_SUB_NORMS_OF_FIRST_LAYER)
    config = {**model.config.to_dict(), "architectures": [architecture]}
    family_of(config, tensor_names).hyperparameters(config, tensor_names)


def _as_bit_linear(linear: nn.Linear) -> BitLinear:
    """A BitLinear that shares the parameters of ``linear``."""
    has_bias = linear.bias is not None
    bit_linear = BitLinear(linear.in_features, linear.out_features, has_bias, device="meta")
    bit_linear.weight = linear.weight
    bit_linear.bias = linear.bias
    return bit_linear.train(linear.training)
