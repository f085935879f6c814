"""The packings that bitexport reads, and how a checkpoint says which one it has.

The choice follows from ``quantization_config`` alone, never from magnitudes.
Adding a packing: one file here, one line in :data:`PACKINGS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bitexport.checkpoint.packings.base import Packing
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.checkpoint.packings.packed_divide import PackedDivide
from bitexport.checkpoint.packings.packed_multiply import PackedMultiply
from bitexport.checkpoint.reader import Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError

__all__ = ["PACKINGS", "Packing", "keeps_float", "packing_of", "quantization_config"]

#: (linear_class, quantization_mode) -> packing. transformers ignores the mode for ``bitlinear``.
PACKINGS: Mapping[tuple[str, str], Packing] = MappingProxyType(
    {
        ("autobitlinear", "online"): MasterWeights(),
        ("autobitlinear", "offline"): PackedMultiply(),
        ("bitlinear", "offline"): PackedDivide(),
        ("bitlinear", "online"): PackedDivide(),
    }
)


def quantization_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The checkpoint's ``quantization_config``.

    Raises:
        CheckpointError: it has none, so that transformers would run it with float weights.
        UnsupportedError: its quant_method is another than bitnet.
    """
    found = checkpoint.config.get("quantization_config")
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{checkpoint.path}/config.json: no quantization_config, so its weights are not ternary; "
            "expected "
            'quant_method "bitnet": for master weights add linear_class "autobitlinear" and '
            'quantization_mode "online"'
        )
    method = found.get("quant_method")
    if method != "bitnet":
        raise UnsupportedError(
            f"quant_method {method!r} is not ternary; expected 'bitnet': convert that model elsewhere"
        )
    if found.get("use_rms_norm"):
        raise UnsupportedError(
            "use_rms_norm puts a norm in front of every linear layer, which no GGUF graph here runs yet; "
            "expected use_rms_norm false"
        )
    return found


def packing_of(checkpoint: Checkpoint) -> Packing:
    """The packing of a checkpoint's ternary tensors.

    Raises:
        CheckpointError: no quantization_config.
        UnsupportedError: a quantization that is not one of :data:`PACKINGS`.
    """
    config = quantization_config(checkpoint)
    # the defaults are transformers' own
    key = (config.get("linear_class", "bitlinear"), config.get("quantization_mode", "offline"))
    if not all(isinstance(part, str) for part in key) or key not in PACKINGS:
        known = "; ".join(f"{linear} {mode}" for linear, mode in PACKINGS)
        raise UnsupportedError(
            f"unknown packing: linear_class {key[0]!r}, quantization_mode {key[1]!r}; expected one of: "
            f"{known}"
        )
    return PACKINGS[key]


def keeps_float(checkpoint: Checkpoint, weight_name: str) -> bool:
    """Whether ``modules_to_not_convert`` keeps a linear layer in float, by transformers' own matching rule.

    A pattern matches from the start of the module's name up to a dot, as a regular expression too, or as the
    end of the name.

    Raises:
        CheckpointError: the list holds something that is not a pattern.
    """
    patterns = quantization_config(checkpoint).get("modules_to_not_convert")
    if patterns is None:
        return False
    # text would be taken letter by letter, and almost every name matches some letter
    if not isinstance(patterns, list) or not all(isinstance(part, str) and part for part in patterns):
        raise CheckpointError(
            f"config.json: modules_to_not_convert is {patterns!r}; expected a list of module names, none of "
            'them empty, such as ["lm_head"]'
        )
    module = weight_name.removesuffix(".weight")
    try:
        return any(
            re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", module) or module.endswith(pattern)
            for pattern in patterns
        )
    except (re.error, RecursionError) as error:
        raise CheckpointError(
            f"modules_to_not_convert {patterns!r} holds a pattern that cannot be matched ({error}); expected "
            "module names"
        ) from error
