"""The optional parts of a decoder layer, and how they are recognised in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any


class Part(Enum):
    """An optional part of a decoder layer; the value is its name in messages."""

    SUB_NORMS = "SubLN (attn_sub_norm, ffn_sub_norm)"
    """A norm in front of the output layers of attention and MLP."""
    QK_NORMS = "norms on queries and keys"
    """One gain for all query heads and one for all key heads."""
    QKV_BIASES = "biases on q, k and v"
    OUTPUT_BIAS = "a bias on o"
    FFN_BIASES = "biases in the MLP"
    INPUT_NORMS = "a norm in front of each linear layer (use_rms_norm)"
    """One for each quantized layer, none for those in ``modules_to_not_convert``."""


#: How the architectures end that always have SubLN; those of :mod:`bitexport.train.student.modeling_subln`.
SUBLN_ENDING = "SubLNForCausalLM"

_SUB_NORM = re.compile(r"model\.layers\.\d+\.(self_attn\.attn_sub_norm|mlp\.ffn_sub_norm)\.weight")
_INPUT_NORM = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.rms_norm\.weight")


def find_parts(config: Mapping[str, Any], names: Collection[str]) -> frozenset[Part]:
    """The optional parts that a checkpoint has, without its family's required parts.

    SubLN has no key in config.json: it is recognised by its tensors, or by the name of an architecture that
    always has it.

    Args:
        config: config.json.
        names: the names of the checkpoint's tensors, normalized by :mod:`bitexport.checkpoint.spelling`.
    """
    quantization = config.get("quantization_config")
    found = set()
    if any(map(_SUB_NORM.fullmatch, names)) or _always_has_sub_norms(config):
        found.add(Part.SUB_NORMS)
    if any(map(_INPUT_NORM.fullmatch, names)) or (
        isinstance(quantization, Mapping) and quantization.get("use_rms_norm")
    ):
        found.add(Part.INPUT_NORMS)
    if config.get("attention_bias"):
        found |= {Part.QKV_BIASES, Part.OUTPUT_BIAS}
    if config.get("mlp_bias"):
        found.add(Part.FFN_BIASES)
    return frozenset(found)


def _always_has_sub_norms(config: Mapping[str, Any]) -> bool:
    named = config.get("architectures")
    return isinstance(named, list) and bool(named) and str(named[0]).endswith(SUBLN_ENDING)
