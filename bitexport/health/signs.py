"""The signs of a bad checkpoint: their names, what is expected instead, and what to do.

The bounds of :data:`ZERO_FRACTION` follow from absmean, which rounds a weight to zero if it is smaller than
half the mean magnitude m. For Gaussian weights P(|w| < m / 2) is 0.31, for Laplacian ones 0.39, for uniform
ones 0.25. No distribution with a single peak at zero has less than 0.25: its magnitudes are a mixture of
uniform ones on [0, a] where the mean of a is 2 m, and min(1, m / 2a) is nowhere below its tangent at a = 2 m.
Training moves weights away from zero or towards it: trained tensors have been seen with 0.25 to 0.6. The
bounds leave a margin on both sides. Below 0.15 a tensor is closer to a one-bit tensor; 0.75 takes tails as
heavy as those of a log-normal distribution with sigma 2, and leaves less than 1.1 of a trit's 1.58 bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from bitexport.errors import CheckpointError

#: The fraction of zeros that a ternary tensor may have without a warning.
ZERO_FRACTION = (0.15, 0.75)

#: Below this size, the fraction of zeros is too uncertain (here its standard deviation is 0.007).
MIN_WEIGHTS = 4096

#: absmean's lower bound of 1e-5, with a margin for scales that were rounded to bfloat16.
SCALE_FLOOR = 1.01e-5

#: Up to this many ids without a token are padding, or up to this fraction of the vocabulary.
MAX_PADDING = 1024
MAX_PADDING_FRACTION = 0.05

#: The number of tensors that a message names.
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class SignKind:
    """What a sign means.

    Attributes:
        expected: what a sound checkpoint has; completes "expected ...".
        advice: what to do.
        level: ``warning``, or ``info`` for something normal that is only worth knowing.
        damage: whether no training produces this, so that the tensors are bad however good the output looks.
    """

    expected: str
    advice: str
    level: str = "warning"
    damage: bool = False


_SAVE_AGAIN = "the file is damaged, or was saved before the weights were loaded: save or download it again"

#: Every sign by its name, which is stable; the worst come first.
SIGNS: Mapping[str, SignKind] = MappingProxyType(
    {
        "not-finite": SignKind(
            "finite weights",
            "the training diverged or the file is damaged: use a checkpoint of an earlier step",
            damage=True,
        ),
        "bad-scale": SignKind(
            "a positive, finite number",
            "the checkpoint is damaged or its training diverged: save it again",
            damage=True,
        ),
        "unreadable": SignKind(
            "weights of this packing", "save or download the checkpoint again", damage=True
        ),
        "all-zero": SignKind("non-zero values", _SAVE_AGAIN, damage=True),
        "identical-tensors": SignKind(
            "different weights in every tensor",
            "one layer overwrote another when the checkpoint was assembled: save it again",
            damage=True,
        ),
        "zero-fraction": SignKind(
            f"{ZERO_FRACTION[0]} to {ZERO_FRACTION[1]} (absmean gives 0.25 to 0.4 before training)",
            "check how these weights were quantized, and whether they were trained",
        ),
        "dead-rows": SignKind(
            "none", "these outputs are always zero: look for a copy that skipped rows, or for dead neurons"
        ),
        "dead-columns": SignKind(
            "none",
            "these inputs are never used: look for a copy that skipped columns, or for dead neurons",
        ),
        "scale-at-floor": SignKind(
            "more than 1e-5, where absmean clamps it",
            "the weights have shrunk to nothing: check the weight decay, and which step was saved",
        ),
        "never-trained": SignKind(
            "1 or more", "this is the state before training: convert a checkpoint of a later step"
        ),
        "loss-not-finite": SignKind(
            "a finite loss", "the training diverged: convert a checkpoint from before it did"
        ),
        "vocabulary-mismatch": SignKind(
            "the same size, or a few unused ids at the end",
            "put the tokenizer that the model was trained with into its folder, and resize the embeddings "
            "to it",
        ),
        "dead-groups": SignKind(
            "few, if any",
            "nothing to do if they were trained that way: these weights are always zero",
            level="info",
        ),
        "padded-vocabulary": SignKind(
            "where a size is rounded up for speed", "nothing to do: no text has these ids", level="info"
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign at one place, which is a tensor or a file next to the weights; ``value`` is what was found."""

    name: str
    place: str
    value: str


@dataclass(frozen=True, slots=True)
class Finding:
    """All signs of one name.

    Attributes:
        name: one of :data:`SIGNS`.
        level: ``warning`` or ``info``.
        damage: see :class:`SignKind`.
        count: number of places.
        places: tensors, or files next to the weights, in natural order.
        values: what was found at each place.
        expected, advice: see :class:`SignKind`.
        message: all of this in one line, with the first few places.
    """

    name: str
    level: str
    damage: bool
    count: int
    places: list[str]
    values: list[str]
    expected: str
    advice: str
    message: str

    def to_json(self) -> dict[str, Any]:
        """The finding as one JSON object."""
        return asdict(self)


def fold(signs: Iterable[Sign]) -> list[Finding]:
    """One finding per name, in the order of :data:`SIGNS`; the order of ``signs`` does not matter."""
    found: dict[str, list[Sign]] = {}
    for sign in signs:
        found.setdefault(sign.name, []).append(sign)
    return [_finding(name, sorted(found[name], key=_natural_order)) for name in SIGNS if name in found]


def refuse(findings: Iterable[Finding]) -> None:
    """Raise a CheckpointError that lists the warnings, if there are any."""
    bad = [finding for finding in findings if finding.level == "warning"]
    if bad:
        listed = ", ".join(
            f"{finding.name} ({finding.places[0]}: {finding.values[0]}"
            + (f"; and {finding.count - 1} more)" if finding.count > 1 else ")")
            for finding in bad
        )
        raise CheckpointError(
            f"--strict: the checkpoint looks bad, so nothing is written: {listed}; run `bitexport inspect "
            "--health` on it, or convert it without --strict"
        )


def _finding(name: str, signs: list[Sign]) -> Finding:
    kind = SIGNS[name]
    if len(signs) == 1:
        where = f"{signs[0].place}: {signs[0].value}"
    else:
        listed = ", ".join(f"{sign.place} ({sign.value})" for sign in signs[:EXAMPLES])
        where = f"{len(signs)} tensors{', such as' if len(signs) > EXAMPLES else ':'} {listed}"
    return Finding(
        name=name,
        level=kind.level,
        damage=kind.damage,
        count=len(signs),
        places=[sign.place for sign in signs],
        values=[sign.value for sign in signs],
        expected=kind.expected,
        advice=kind.advice,
        message=f"{where}; expected {kind.expected}; {kind.advice} [{name}]",
    )


def _natural_order(sign: Sign) -> list[tuple[int, int, str]]:
    """A sort key that puts layer 2 before layer 10."""
    parts = re.findall(r"\d+|\D+", sign.place)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
