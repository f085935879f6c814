"""The result of comparing steps, and the sentence that names the first step that diverges."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bitexport.parity.layers.difference import Difference

#: Two vectors have the same direction when 1 - cosine is below this; float32 error is far smaller.
_SAME_DIRECTION = 1e-9


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step, compared in up to three ways.

    Attributes:
        name: the step's name and the layer number: ``attn_norm-3``.
        layer: the layer number; None before and after all layers.
        decided_by: what the step depends on in the file, apart from its input.
        isolated: PyTorch runs the step on the input that C++ had. A fault shows only in the step that has it.
        aligned: both run from the input tokens, rounding decisions aligned; None if they cannot be aligned.
        plain: both run from the input tokens, unmodified.
    """

    name: str
    layer: int | None
    decided_by: str
    isolated: Difference
    aligned: Difference | None
    plain: Difference

    @property
    def diverged(self) -> bool:
        """Whether the step itself is wrong, whatever its input."""
        return self.isolated.diverged

    def evidence(self) -> str:
        """How the values differ, as a clause."""
        found = self.isolated
        if found.length_ratio == 0:
            return "all C++ values are zero"
        if found.columns_off < found.columns // 2:
            return (
                f"{found.columns_off} of {found.columns} values differ, the first at index "
                f"{found.first_column}, by up to {found.grid_steps_max:.3g} steps of an 8-bit grid"
            )
        if found.cosine_gap < _SAME_DIRECTION:
            return f"the C++ values are {found.length_ratio:.6g} times PyTorch's, so a scale is off"
        text = (
            f"the cosine is {found.cosine_min:.6f} and the L2 norm {found.length_ratio:.4g} times PyTorch's"
        )
        if found.first_token and self.name.startswith(("q_rope", "k_rope")):
            text += f"; tokens before index {found.first_token} agree, so the error depends on the position"
        return text

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "name": self.name,
            "layer": self.layer,
            "decided_by": self.decided_by,
            "parted": self.diverged,
            "own": asdict(self.isolated),
            "aligned": asdict(self.aligned) if self.aligned else None,
            "plain": asdict(self.plain),
        }


@dataclass(frozen=True, slots=True)
class LayersReport:
    """Every step that both sides have.

    Attributes:
        steps: in the order in which PyTorch computes them.
        absent: steps that this model does not have.
        unnamed: steps that PyTorch has, but whose tensors C++ does not name.
        tokens: number of tokens compared: the first 256 of each prompt.
        tokens_given: number of tokens in all prompts.
        unfaithful: see :class:`bitexport.parity.aligned.Alignment`.
    """

    steps: list[StepResult]
    absent: list[str]
    unnamed: list[str]
    tokens: int
    tokens_given: int
    unfaithful: str | None

    @property
    def diverged(self) -> list[StepResult]:
        """The steps that are themselves wrong, in order."""
        return [step for step in self.steps if step.diverged]

    @property
    def first(self) -> str | None:
        """The name of the first step that diverges; None if none does."""
        if self.diverged:
            return self.diverged[0].name
        if self.unfaithful:
            return "result_output" if "output head" in self.unfaithful else "embd"
        return None

    def describe(self) -> str:
        """The finding, as a sentence without its full stop."""
        if not self.diverged:
            if self.unfaithful:
                return f"the first step that diverges is {self.first}: {self.unfaithful}"
            worst = max(self.steps, key=lambda step: step.isolated.excess)
            return (
                f"no step diverges: on the same input all {len(self.steps)} agree; the largest difference, "
                f"at {worst.name}, is {worst.isolated.excess:.1%} of its tolerance"
            )
        first, *others = self.diverged
        before = self.steps.index(first)
        agree = f", while all {before} steps before it agree" if before > 1 else ""
        return (
            f"the first step that diverges is {first.name}: on the same input, {first.evidence()}{agree}; "
            f"check {first.decided_by}{_others(others)}"
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


def _others(steps: list[StepResult]) -> str:
    if not steps:
        return ""
    names = ", ".join(step.name for step in steps[:3])
    rest = f" and {len(steps) - 3} more" if len(steps) > 3 else ""
    return f"; these steps diverge as well, on the same input: {names}{rest}"
