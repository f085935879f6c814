"""Sources with weights: ``kind:place @ weight``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bitexport.errors import UsageError

_WEIGHT = re.compile(r"\s+@\s+(\S+)$")


@dataclass(frozen=True)
class Mixture:
    """The sources of a stage.

    Attributes:
        specs: the sources, without weights; see :mod:`bitexport.text.sources`.
        weights: each source's part of the tokens that a run sees, 1 in total; None: every text counts once.
    """

    specs: tuple[str, ...]
    weights: tuple[float, ...] | None


def parse_mixture(sources: Sequence[str]) -> Mixture:
    """Separate sources from their weights, of any size: ``["hub:a/b @ 7", "text:c @ 3"]``.

    Raises:
        UsageError: a weight is not a number above 0, or only some of the sources have one.
    """
    found = [_WEIGHT.search(source) for source in sources]
    specs = tuple(_WEIGHT.sub("", source) for source in sources)
    if not any(found):
        return Mixture(specs, None)
    weights = []
    for source, match in zip(sources, found, strict=True):
        if match is None:
            raise UsageError(
                f"source {source!r} has no weight, others have; give every source one: {source} @ 1"
            )
        weights.append(_number(source, match[1]))
    total = sum(weights)
    return Mixture(specs, tuple(weight / total for weight in weights))


def _number(source: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise UsageError(
            f"source {source!r}: weight {text}; expected a number above 0, as in kind:place @ 0.7"
        )
    return weight
