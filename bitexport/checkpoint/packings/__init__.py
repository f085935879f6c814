"""The packings: the ways in which checkpoints store ternary tensors that bitexport reads.

The packing of a checkpoint follows from ``quantization_config``, never from magnitudes. Without one, the
weights are ternary by the definition of their architecture or of their layers, or they must be
pre-dequantized. Adding a packing: one new file here, one line in :data:`PACKINGS`, or in
:data:`BITNET_PACKINGS` if its quant_method is bitnet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from bitexport.checkpoint.packings.base import Packing, Scales
from bitexport.checkpoint.packings.compressed_tensors import CompressedTensors
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.checkpoint.packings.mlx_affine import MLXAffine
from bitexport.checkpoint.packings.packed_divide import PackedDivide
from bitexport.checkpoint.packings.packed_multiply import PackedMultiply
from bitexport.checkpoint.packings.pre_dequantized import PreDequantized
from bitexport.checkpoint.patterns import check_patterns, compiled
from bitexport.checkpoint.reader import Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError

__all__ = [
    "ONLINE",
    "PACKINGS",
    "Packing",
    "Scales",
    "keeps_float",
    "modules_to_not_convert",
    "packing_of",
    "quantization_config",
]

#: Packings of quant_method bitnet by (linear_class, quantization_mode). transformers ignores the mode for
#: ``bitlinear``.
BITNET_PACKINGS: Mapping[tuple[str, str], Packing] = MappingProxyType(
    {
        ("autobitlinear", "online"): MasterWeights(),
        ("autobitlinear", "offline"): PackedMultiply(),
        ("bitlinear", "offline"): PackedDivide(),
        ("bitlinear", "online"): PackedDivide(),
    }
)

#: All packings. Those of other quant_methods have the method and the format as their key; the last one is for
#: checkpoints without quantization_config.
PACKINGS: Mapping[tuple[str, str] | None, Packing] = MappingProxyType(
    {
        **cast("Mapping[tuple[str, str] | None, Packing]", BITNET_PACKINGS),
        ("compressed-tensors", "pack-quantized"): CompressedTensors(),
        ("mlx", "affine"): MLXAffine(),
        None: PreDequantized(),
    }
)

#: The values of quant_method.
METHODS = ("bitnet", "compressed-tensors")

#: The quantization_config of master weights.
ONLINE: Mapping[str, Any] = MappingProxyType(
    {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
)

#: The quantization_config of architectures that are ternary by definition, for when config.json has none.
TERNARY_BY_DEFINITION: Mapping[str, Mapping[str, Any]] = MappingProxyType({"BitnetForCausalLM": ONLINE})

#: The end of the names of norms in front of single linear layers. Only BitLinear layers have them, which hold
#: master weights if there is no quantization_config (Microsoft's embedding models).
INPUT_NORM = "_proj.rms_norm.weight"


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ``quantization_config`` of config.json or of the architecture; None if there is neither.

    MLX's ``quantization``, which has no quant_method, gets ``mlx`` as one.

    Raises:
        CheckpointError: it is not an object.
        UnsupportedError: its quant_method is not one of :data:`METHODS`.
    """
    found = config.get("quantization_config")
    if found is None:
        found = config.get("quantization")
    if found is None:
        named = config.get("architectures")
        return TERNARY_BY_DEFINITION.get(str(named[0])) if isinstance(named, list) and named else None
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json: quantization_config is {found!r}; expected an object")
    if "quant_method" not in found and {"bits", "group_size"} <= found.keys():
        return {**found, "quant_method": "mlx"}
    method = found.get("quant_method")
    if method not in METHODS:
        raise UnsupportedError(
            f"quant_method {method!r} is not ternary; expected 'bitnet', or 2 bits of 'compressed-tensors' "
            "or MLX: convert that model elsewhere, or, if it has float master weights, with --master"
        )
    return found


def packing_of(checkpoint: Checkpoint) -> Packing:
    """The packing of a checkpoint's ternary tensors.

    Raises:
        UnsupportedError: its quantization is not one of :data:`PACKINGS`.
    """
    config = quantization_config(checkpoint.config)
    if config is None and any(name.endswith(INPUT_NORM) for name in checkpoint.tensors):
        config = ONLINE
    if config is None:
        return PACKINGS[None]
    if config["quant_method"] == "mlx":
        _check_mlx(config)
        return PACKINGS["mlx", "affine"]
    if config["quant_method"] == "compressed-tensors":
        return PACKINGS["compressed-tensors", "pack-quantized"]  # which checks the rest of the configuration
    # the defaults are those of transformers
    key = (config.get("linear_class", "bitlinear"), config.get("quantization_mode", "offline"))
    if not all(isinstance(part, str) for part in key) or key not in BITNET_PACKINGS:
        known = "; ".join(" ".join(pair) for pair in BITNET_PACKINGS)
        raise UnsupportedError(
            f"unknown packing: linear_class {key[0]!r}, quantization_mode {key[1]!r}; expected one of: "
            f"{known}"
        )
    return BITNET_PACKINGS[key]


def _check_mlx(config: Mapping[str, Any]) -> None:
    if config["bits"] != 2 or config.get("mode", "affine") != "affine":
        raise UnsupportedError(
            f"config.json: quantization has {config['bits']!r} bits, mode {config.get('mode', 'affine')!r}, "
            "which is not ternary; expected 2 bits, affine: convert this model's float checkpoint instead"
        )


def modules_to_not_convert(checkpoint: Checkpoint) -> Any:
    """The entry ``modules_to_not_convert`` of ``quantization_config``, unchecked; None if there is none."""
    return (quantization_config(checkpoint.config) or {}).get("modules_to_not_convert")


def keeps_float(checkpoint: Checkpoint, weight_name: str) -> bool:
    """Whether ``modules_to_not_convert`` keeps a linear layer in float, matched as transformers does.

    A pattern is a regular expression that matches from the start of the module's name up to a dot or the
    end, or plain text that the name ends in.

    Raises:
        CheckpointError: the list contains something that is not a pattern.
    """
    packing = packing_of(checkpoint)
    if isinstance(packing, (CompressedTensors, MLXAffine)):
        # each lists what it leaves out in its own way; the tensors show it
        return not packing.holds(checkpoint, weight_name)
    patterns = modules_to_not_convert(checkpoint)
    if patterns is None:
        return False
    # a plain string would be iterated letter by letter, and almost every name matches some letter
    if not isinstance(patterns, list) or not all(isinstance(part, str) and part for part in patterns):
        raise CheckpointError(
            f"config.json: modules_to_not_convert is {patterns!r}; expected a list of non-empty module "
            'names, such as ["lm_head"]'
        )
    check_patterns("config.json: modules_to_not_convert", patterns)
    module = weight_name.removesuffix(".weight")
    try:
        return any(
            compiled(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))").match(module) or module.endswith(pattern)
            for pattern in patterns
        )
    except (re.error, RecursionError) as error:
        raise CheckpointError(
            f"config.json: modules_to_not_convert {patterns!r} contains an invalid pattern ({error}); "
            "expected module names"
        ) from error
