"""Notices values that are not finite without waiting for the accelerator: looked at when a line is logged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_NEVER = 1 << 62


class Bad(NamedTuple):
    """The first value that was not finite: its step, counted from 1, its name and the value."""

    step: int
    name: str
    value: float


class FiniteWatch:
    """Remembers, on the device, the first step at which each named value was NaN or infinite."""

    def __init__(self) -> None:
        # By the names that are looked at together: the first bad step and value of each, [names].
        self._first: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}

    def look(self, values: Mapping[str, Tensor], step: int) -> None:
        """``values`` are scalars on one device; nothing is copied from it."""
        names = tuple(values)
        stacked = torch.stack([value.detach() for value in values.values()]).float()
        if names not in self._first:
            self._first[names] = (
                torch.full_like(stacked, _NEVER, dtype=torch.int64),
                torch.zeros_like(stacked),
            )
        # In the order of the last look: a term before the gradient that it spoils.
        steps, first = self._first[names] = self._first.pop(names)
        is_new = ~torch.isfinite(stacked) & (steps == _NEVER)
        first.copy_(torch.where(is_new, stacked, first))
        steps.masked_fill_(is_new, step)

    def found(self) -> Bad | None:
        """The earliest one, of several in a step the one that was looked at first. Waits for the device."""
        earliest = Bad(_NEVER, "", math.nan)
        for names, (steps, values) in self._first.items():
            for name, step, value in zip(names, steps.tolist(), values.tolist(), strict=True):
                if step < earliest.step:
                    earliest = Bad(step, name, value)
        return None if earliest.step == _NEVER else earliest
