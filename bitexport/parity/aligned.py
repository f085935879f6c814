"""How much of a disagreement is no mistake: quantized embeddings, rounding, and PyTorch's own noise."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bitexport.errors import UnsupportedError
from bitexport.gguf.embeddings import Embeddings
from bitexport.metrics.logits import Agreement, compare_logits, join, summarize
from bitexport.parity.details import See
from bitexport.parity.greedy import Continuation, compare_steps
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference
from bitexport.reference.alignment import Decisions, aligned_rounding
from bitexport.reference.embeddings import replaced_embeddings, unfaithful_row
from bitexport.reference.float_layers import rounded_float_layers
from bitexport.runtime.model import Session
from bitexport.runtime.observe import record_activations

#: Half of float32's machine epsilon: what a single rounding may move a value by, relatively.
_FLOAT32_ROUNDING = 2.0**-24


@dataclass(frozen=True, slots=True)
class Alignment:
    """Agreement when PyTorch starts from the GGUF file's embeddings and rounds as C++ did on the edge.

    The two things taken out are what a converted file owns up to, its quantized embeddings, and what no
    implementation can share with another, the last bits of a float. What is left is a mistake.

    Attributes:
        agreement: of the logits, then.
        compared: activations quantized on both sides.
        adopted: those on the edge that C++ rounded the other way.
        farthest_steps: the largest distance from the edge among them, in steps of the 8-bit activation.
        unexplained: activations that differ without being on the edge.
        first_unexplained: GGUF name of the first weight that received such a one.
        unfaithful: where the file's embedding or head is not the checkpoint's; None if it is everywhere.
    """

    agreement: Agreement
    compared: int
    adopted: int
    farthest_steps: float
    unexplained: int
    first_unexplained: str | None
    unfaithful: str | None

    def describe(self) -> str:
        """The finding as a clause."""
        if self.unfaithful:
            return self.unfaithful
        if self.unexplained:
            return (
                f"{self.unexplained:,} of {self.compared:,} activations differ by more than rounding "
                f"explains, the first of them at the input of {self.first_unexplained}"
            )
        return (
            f"cosine is at least {self.agreement.cosine_min:.8f} once PyTorch has the file's embeddings and "
            f"rounds as C++ did at the {self.adopted:,} of {self.compared:,} activations that lie on an edge "
            f"(at most {self.farthest_steps:.1g} of a step from it)"
        )


def compare_aligned(
    reference: Reference,
    session: Session,
    embeddings: Embeddings,
    ids_of: Sequence[Sequence[int]],
    tokens: int = 0,
    progress: Progress = ignore,
    see: See | None = None,
) -> tuple[Alignment, list[Continuation]]:
    """Compare logits with the file's ``embeddings`` and rounding decisions aligned, see :class:`Alignment`.

    C++ continues each prompt greedily by ``tokens`` tokens; PyTorch, in one run over both,
    says what it would have chosen at each of them. Their positions are part of the agreement, so that
    decoding token by token is judged as well as prefill. ``see`` is shown every prompt's logits.

    Raises:
        UnsupportedError: a layer that is ternary in the checkpoint is not I2_S in the file.
    """
    layers = reference.ternary_layers()
    comparisons = []
    continuations = []
    runs: list[Decisions] = []
    unfaithful = unfaithful_row(reference.model, embeddings)
    with (
        replaced_embeddings(reference.model, embeddings),
        rounded_float_layers(reference.modules(), session.path),
    ):
        for index, ids in enumerate(ids_of):
            progress(ProgressEvent(index, len(ids_of), "prompts", "aligning"))
            with record_activations() as recorded:
                theirs = session.logits(ids)
                steps = _greedy_steps(session, theirs[-1], tokens)
            _check_recorded(session, layers, recorded)
            chosen = [int(step.argmax()) for step in steps]
            with aligned_rounding(layers, recorded) as decisions:
                ours = reference.logits([*ids, *chosen[:-1]])
            both = np.stack([*theirs, *steps[1:]])
            comparisons.append(compare_logits(ours, both))
            if see is not None:
                see(index, [*ids, *chosen[:-1]], ours, both)
            continuations.append(compare_steps(list(ours[len(ids) - 1 :]), steps))
            runs.append(decisions)
    alignment = Alignment(
        agreement=summarize(join(comparisons)),
        compared=sum(run.compared for run in runs),
        adopted=sum(run.adopted for run in runs),
        farthest_steps=max(run.farthest for run in runs),
        unexplained=sum(run.unexplained for run in runs),
        first_unexplained=next((run.first_unexplained for run in runs if run.first_unexplained), None),
        unfaithful=unfaithful,
    )
    return alignment, continuations


def _greedy_steps(
    session: Session, first: npt.NDArray[np.float32], tokens: int
) -> list[npt.NDArray[np.float32]]:
    """The logits of ``tokens`` greedy steps, the first of which are given; the last choice is not run."""
    steps = [first][:tokens]
    while len(steps) < tokens:
        steps.append(session.feed([int(steps[-1].argmax())]))
    return steps


def _check_recorded(session: Session, layers: Iterable[str], recorded: Container[str]) -> None:
    for name in layers:
        if name not in recorded:
            raise UnsupportedError(
                f"{session.path}: {name} is not I2_S, so that its activations cannot be aligned; "
                "use --plain to compare the logits as they are"
            )


def noise_floor(
    reference: Reference, ids_of: Sequence[Sequence[int]], progress: Progress = ignore
) -> Agreement:
    """PyTorch against itself when every embedding value is off by at most one float32 rounding.

    No implementation can be expected to agree with PyTorch better than PyTorch agrees with itself here.
    """
    generator = torch.Generator().manual_seed(0)

    def disturb(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        sign = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
        return output * (1 + 2 * _FLOAT32_ROUNDING * sign)

    comparisons = []
    for index, ids in enumerate(ids_of):
        progress(ProgressEvent(index, len(ids_of), "prompts", "measuring noise"))
        undisturbed = reference.logits(ids)
        handle = reference.model.get_input_embeddings().register_forward_hook(disturb)
        try:
            comparisons.append(compare_logits(undisturbed, reference.logits(ids)))
        finally:
            handle.remove()
    return summarize(join(comparisons))
