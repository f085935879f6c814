"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked, and the result.

    Attributes:
        name: short and stable; programs may look for it.
        value: what was found.
        status: ``"problem"``: bitexport cannot work; ``"warning"``: a part of it cannot, or is slow.
        meaning: a sentence about what depends on it here.
        advice: what to do; empty if nothing needs doing.
    """

    name: str
    value: str
    status: Status
    meaning: str
    advice: str = ""


def gib(count: float) -> str:
    """Bytes as ``"12.3 GiB"``."""
    return f"{count / 2**30:.1f} GiB"
