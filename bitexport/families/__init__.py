"""The model families that bitexport converts. Adding one: one file here, one line in :data:`FAMILIES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families.base import Claim, Family, Hyperparameters, Role, Rule
from bitexport.families.bitnet import BITNET
from bitexport.families.llama import LLAMA

__all__ = ["FAMILIES", "Claim", "Family", "Hyperparameters", "Role", "Rule", "family_of"]

FAMILIES: tuple[Family, ...] = (BITNET, LLAMA)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint, by ``architectures`` in its config.json.

    Raises:
        CheckpointError: config.json names no architecture.
        UnsupportedError: no family covers it.
    """
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise CheckpointError('config.json: no architectures; expected a list such as ["BitNetForCausalLM"]')
    for family in FAMILIES:
        if named[0] in family.architectures:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise UnsupportedError(
        f"unknown architecture {named[0]!r}; expected one of {known}: ask for it in an issue"
    )
