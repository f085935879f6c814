"""The causes of a difference that are not mistakes: quantized embeddings, rounding, PyTorch's own noise."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bitexport.errors import UnsupportedError
from bitexport.gguf.embeddings import Embeddings
from bitexport.metrics.logits import Agreement, LogitComparison, compare_logits, join, summarize
from bitexport.parity.details import OnLogits
from bitexport.parity.greedy import Continuation, compare_choices
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference
from bitexport.reference.alignment import Decisions, aligned_rounding
from bitexport.reference.embeddings import replaced_embeddings, unfaithful_row
from bitexport.reference.float_layers import rounded_float_layers
from bitexport.runtime.observe import record_activations
from bitexport.runtime.session import Session

#: Half of float32's machine epsilon: the largest relative error of a single rounding.
_FLOAT32_ROUNDING = 2.0**-24


@dataclass(frozen=True, slots=True)
class Alignment:
    """Agreement when PyTorch uses the GGUF file's embeddings and rounds as C++ did at rounding edges.

    This removes the two differences that are not mistakes: the embeddings, which the file stores quantized,
    and the last bits of a float, in which any two implementations differ. The remaining difference is a
    mistake. See :mod:`bitexport.reference.alignment` for *edge* and *step*.

    Attributes:
        agreement: of the aligned logits.
        compared: activations quantized on both sides.
        adopted: activations on an edge that C++ rounded the other way.
        farthest_steps: the largest distance from the edge among them, in steps of the 8-bit activation.
        unexplained: activations that differ without being on an edge.
        first_unexplained: GGUF name of the first weight that received an unexplained one.
        unfaithful: a clause that names the first row of the file's embedding or head that is not the
            checkpoint's; None if there is none.
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
            f"cosine is at least {self.agreement.cosine_min:.8f} once PyTorch uses the file's embeddings and "
            f"rounds as C++ did at the {self.adopted:,} of {self.compared:,} activations that are on a "
            f"rounding edge (at most {self.farthest_steps:.1g} of a step from it)"
        )


def compare_aligned(
    reference: Reference,
    session: Session,
    embeddings: Embeddings,
    ids_of: Sequence[Sequence[int]],
    tokens: int = 0,
    progress: Progress = ignore,
    on_logits: OnLogits | None = None,
) -> tuple[Alignment, list[Continuation]]:
    """Compare logits with the file's ``embeddings`` and rounding decisions aligned, see :class:`Alignment`.

    C++ continues each prompt greedily by ``tokens`` tokens; PyTorch runs prompt and continuation at once, and
    its logits say what it would have chosen at each step. These positions are part of the agreement, so that
    token-by-token decode is judged as well as prefill. ``on_logits`` is called with every prompt's logits.

    Raises:
        UnsupportedError: a layer that is ternary in the checkpoint is not I2_S in the file.
    """
    comparisons: list[LogitComparison] = []
    continuations: list[Continuation] = []
    runs: list[Decisions] = []
    unfaithful = unfaithful_row(reference.model, embeddings)
    with (
        replaced_embeddings(reference.model, embeddings),
        rounded_float_layers(reference.modules(), session.path),
    ):
        for index, ids in enumerate(ids_of):
            progress(ProgressEvent(index, len(ids_of), "prompts", "aligning"))
            run = _run_aligned(reference, session, ids, tokens)
            comparisons.append(compare_logits(run.python, run.cpp))
            if on_logits is not None:
                on_logits(index, run.ids, run.python, run.cpp)
            decode = slice(len(ids) - 1, len(ids) - 1 + tokens)
            continuations.append(compare_choices(list(run.python[decode]), list(run.cpp[decode])))
            runs.append(run.decisions)
    return _alignment(summarize(join(comparisons)), runs, unfaithful), continuations


@dataclass(frozen=True, slots=True)
class _AlignedRun:
    """One prompt and its continuation.

    Attributes:
        ids: the T tokens that PyTorch ran: the prompt, and the continuation without its last token.
        python, cpp: logits, float32 ``[T, V]``.
        decisions: the rounding decisions of PyTorch.
    """

    ids: list[int]
    python: npt.NDArray[np.float32]
    cpp: npt.NDArray[np.float32]
    decisions: Decisions


def _run_aligned(reference: Reference, session: Session, ids: Sequence[int], tokens: int) -> _AlignedRun:
    """Run C++ over the prompt, then token by token, and PyTorch over both at once, aligned."""
    layers = reference.ternary_layers()
    with record_activations() as recorded:
        prefill = session.logits(ids)
        steps = _greedy_steps(session, prefill[-1], tokens)
    check_recorded(session, layers, recorded)
    chosen = [int(step.argmax()) for step in steps]
    run = [*ids, *chosen[:-1]]
    with aligned_rounding(layers, recorded) as decisions:
        python = reference.logits(run)
    return _AlignedRun(run, python, np.stack([*prefill, *steps[1:]]), decisions)


def _greedy_steps(
    session: Session, first: npt.NDArray[np.float32], tokens: int
) -> list[npt.NDArray[np.float32]]:
    """The logits of ``tokens`` greedy steps, beginning with ``first``; the last token chosen is not run."""
    steps = [first][:tokens]
    while len(steps) < tokens:
        steps.append(session.feed([int(steps[-1].argmax())]))
    return steps


def check_recorded(session: Session, layers: Iterable[str], recorded: Container[str]) -> None:
    """Raise UnsupportedError unless the activations of every layer were recorded."""
    for name in layers:
        if name not in recorded:
            raise UnsupportedError(
                f"{session.path}: {name} is not I2_S, so its activations cannot be aligned; "
                "use --plain to compare the logits without alignment"
            )


def _alignment(agreement: Agreement, runs: Sequence[Decisions], unfaithful: str | None) -> Alignment:
    return Alignment(
        agreement=agreement,
        compared=sum(run.compared for run in runs),
        adopted=sum(run.adopted for run in runs),
        farthest_steps=max(run.farthest for run in runs),
        unexplained=sum(run.unexplained for run in runs),
        first_unexplained=next((run.first_unexplained for run in runs if run.first_unexplained), None),
        unfaithful=unfaithful,
    )


def noise_floor(
    reference: Reference, ids_of: Sequence[Sequence[int]], progress: Progress = ignore
) -> Agreement:
    """Compare PyTorch with itself when every embedding value is off by at most one float32 rounding.

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
