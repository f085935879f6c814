"""The model families that bitexport converts. Adding one: one new file here, one line in :data:`FAMILIES`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families.base import Claim, Family, Hyperparameters, Role, Rule, is_headless
from bitexport.families.bitnet import BITNET
from bitexport.families.gemma3 import GEMMA3
from bitexport.families.hunyuan import HUNYUAN
from bitexport.families.llama import LLAMA
from bitexport.families.llama_student import LLAMA_STUDENT
from bitexport.families.onebitllm import ONEBITLLM
from bitexport.families.parts import Part
from bitexport.families.qwen2 import QWEN2
from bitexport.families.qwen3 import QWEN3

__all__ = [
    "BITNET",
    "FAMILIES",
    "Claim",
    "Family",
    "Hyperparameters",
    "Part",
    "Role",
    "Rule",
    "check_runs",
    "family_of",
    "has_family",
    "is_headless",
]

#: Of several families with the same architecture, the first whose graph runs the checkpoint is chosen.
FAMILIES: tuple[Family, ...] = (BITNET, ONEBITLLM, LLAMA, LLAMA_STUDENT, QWEN2, QWEN3, HUNYUAN, GEMMA3)


def family_of(config: Mapping[str, Any], names: Collection[str] = ()) -> Family:
    """The family of a checkpoint, by ``architectures`` in its config.json and its optional parts.

    Args:
        config: config.json.
        names: the names of its tensors, by which SubLN is recognised.

    Raises:
        CheckpointError: config.json names no architecture.
        UnsupportedError: no family supports it.
    """
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise CheckpointError('config.json: no architectures; expected a list such as ["BitNetForCausalLM"]')
    candidates = [family for family in FAMILIES if named[0] in family.architectures]
    for family in candidates:
        if family.runs(family.parts(config, names)):
            return family
    for last in candidates[-1:]:
        unsupported = last.parts(config, names) - last.required_parts - last.optional_parts
        if not unsupported:
            raise UnsupportedError(
                f"architecture {named[0]!r} runs only as a {last.name} ({last.summary}), and this checkpoint "
                "has none of these norms; request it in an issue"
            )
        raise UnsupportedError(
            f"architecture {named[0]!r} with {', '.join(sorted(part.value for part in unsupported))}: the "
            f"graph {last.gguf_architecture} does not support that; expected a model without it, or request "
            "support in an issue"
        )
    known = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.architectures))
    raise UnsupportedError(
        f"unknown architecture {named[0]!r}; expected one of {known}, or for `bitexport convert` one that "
        "llama.cpp's converter knows: request it in an issue"
    )


def check_runs(config: Mapping[str, Any], names: Collection[str]) -> None:
    """Check that a family written by hand runs a checkpoint; arguments as in :func:`family_of`.

    Raises:
        CheckpointError: config.json is invalid.
        UnsupportedError: no family has the architecture, or its graph lacks something that the model needs.
    """
    family = family_of(config, names)
    family.extra_tensors(family.hyperparameters(config, names))


def has_family(config: Mapping[str, Any]) -> bool:
    """Whether a family written by hand has the architecture that config.json names."""
    named = config.get("architectures")
    names = {name for family in FAMILIES for name in family.architectures}
    return isinstance(named, list) and bool(named) and named[0] in names
