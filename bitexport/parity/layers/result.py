"""What a comparison of steps found, and the sentence that names the first step that parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bitexport.parity.layers.difference import Difference

#: A direction is the same when 1 - cosine is below this: float32 error is far smaller.
_SAME_DIRECTION = 1e-9


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step, compared in up to three ways.

    Attributes:
        name: ``attn_norm-3``; the step's name and the layer's number.
        layer: the number; None before and after all layers.
        decided_by: what in the file the step depends on, beside its input.
        own: PyTorch's step on the input that C++ had. A fault shows in its own step only.
        aligned: both from the tokens on, rounding decisions aligned; None when they could not be.
        plain: both from the tokens on, left to themselves.
    """

    name: str
    layer: int | None
    decided_by: str
    own: Difference
    aligned: Difference | None
    plain: Difference

    @property
    def whole(self) -> Difference:
        """From the tokens on, aligned where that was possible."""
        return self.aligned or self.plain

    def evidence(self) -> str:
        """How the values differ, as a clause."""
        found = self.own
        if found.length_ratio == 0:
            return "C++ has nothing but zeros"
        if found.columns_off < found.columns // 2:
            return (
                f"{found.columns_off} of {found.columns} values differ, first number {found.first_column}, "
                f"by up to {found.grid_steps_max:.3g} steps of an 8-bit grid"
            )
        if found.cosine_gap < _SAME_DIRECTION:
            times = f"{found.length_ratio:.6g} times the length"
            return f"C++ has the same direction and {times}, so a scale is off"
        text = f"the cosine is {found.cosine_min:.6f} and the length {found.length_ratio:.4g} times PyTorch's"
        if found.first_token and self.name.startswith(("q_rope", "k_rope")):
            text += f"; tokens before number {found.first_token} agree, so it depends on the position"
        return text

    def to_json(self) -> dict[str, Any]:
        """The attributes, and whether the step parts."""
        return {
            "name": self.name,
            "layer": self.layer,
            "decided_by": self.decided_by,
            "parted": self.own.parted,
            "own": asdict(self.own),
            "aligned": asdict(self.aligned) if self.aligned else None,
            "plain": asdict(self.plain),
        }


@dataclass(frozen=True, slots=True)
class LayersReport:
    """Every step that both sides show.

    Attributes:
        steps: in the order in which PyTorch computes them.
        absent: steps that this model does not have.
        unnamed: steps that PyTorch has and C++ does not name.
        tokens: how many were compared, and ``tokens_given`` of how many.
        tokens_given: long prompts are compared up to their 256th token.
        unfaithful: where the file's embedding or head is not the checkpoint's.
    """

    steps: list[StepResult]
    absent: list[str]
    unnamed: list[str]
    tokens: int
    tokens_given: int
    unfaithful: str | None

    @property
    def parted(self) -> list[StepResult]:
        """The steps that are wrong by themselves, in order."""
        return [step for step in self.steps if step.own.parted]

    @property
    def first(self) -> str | None:
        """The name of the first step that parts; None when none does."""
        if self.parted:
            return self.parted[0].name
        if self.unfaithful:
            return "result_output" if "output head" in self.unfaithful else "embd"
        return None

    def describe(self) -> str:
        """The finding, as a sentence without its full stop."""
        if not self.parted:
            if self.unfaithful:
                return f"the first step that parts is {self.first}: {self.unfaithful}"
            worst = max(self.steps, key=lambda step: step.own.excess)
            return (
                f"no step parts: on the same input all {len(self.steps)} agree, {worst.name} least, with "
                f"{worst.own.excess:.1%} of what is allowed"
            )
        first, *others = self.parted
        before = self.steps.index(first)
        agree = f", while all {before} steps before it agree" if before > 1 else ""
        return (
            f"the first step that parts is {first.name}: on the same input, {first.evidence()}{agree}; look "
            f"at {first.decided_by}{_more(others)}"
        )

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "first": self.first,
            "finding": self.describe(),
            "tokens": self.tokens,
            "tokens_given": self.tokens_given,
            "absent": self.absent,
            "unnamed": self.unnamed,
            "unfaithful": self.unfaithful,
            "steps": [step.to_json() for step in self.steps],
        }


def _more(others: list[StepResult]) -> str:
    if not others:
        return ""
    names = ", ".join(step.name for step in others[:3])
    rest = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return f"; wrong by themselves as well: {names}{rest}"
