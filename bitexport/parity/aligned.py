"""The causes of a difference that are not mistakes: quantized embeddings, rounding, PyTorch's own noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bitexport.errors import UnsupportedError
from bitexport.gguf.embeddings import Embeddings
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import TERNARY_KINDS
from bitexport.metrics.logits import Agreement, LogitComparison, compare_logits, join, summarize
from bitexport.parity.details import OnLogits
from bitexport.parity.greedy import Continuation, compare_choices
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference
from bitexport.reference.alignment import Decisions, Stored, aligned_rounding
from bitexport.reference.embeddings import replaced_embeddings, unfaithful_row
from bitexport.reference.float_layers import rounded_float_layers
from bitexport.runtime.observe import record_activations
from bitexport.runtime.session import Session

#: The types that convert writes for a ternary weight, and the one of other converters for float weights.
ALIGNED_TYPES = ("f32", *(kind.name for kind in TERNARY_KINDS))

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
        unrecorded: how many ternary weights ggml's own kernels multiplied, which do not report decisions.
    """

    agreement: Agreement
    compared: int
    adopted: int
    farthest_steps: float
    unexplained: int
    first_unexplained: str | None
    unfaithful: str | None
    unrecorded: int = 0

    def describe(self) -> str:
        """The finding as a clause."""
        if self.unfaithful:
            return self.unfaithful
        if self.unexplained:
            return (
                f"{self.unexplained:,} of {self.compared:,} activations differ by more than rounding "
                f"explains, the first of them at the input of {self.first_unexplained}"
            )
        if not self.compared:
            return (
                f"cosine is at least {self.agreement.cosine_min:.8f} once PyTorch uses the file's embeddings "
                f"and rounds activations as the file's types do{self._unaligned()}"
            )
        if not self.adopted:
            return (
                f"cosine is at least {self.agreement.cosine_min:.8f} once PyTorch uses the file's "
                f"embeddings; none of {self.compared:,} activations is on a rounding edge{self._unaligned()}"
            )
        return (
            f"cosine is at least {self.agreement.cosine_min:.8f} once PyTorch uses the file's embeddings and "
            f"rounds as C++ did at the {self.adopted:,} of {self.compared:,} activations that are on a "
            f"rounding edge (at most {self.farthest_steps:.1g} of a step from it){self._unaligned()}"
        )

    def _unaligned(self) -> str:
        if not self.unrecorded:
            return ""
        weights = "1 weight" if self.unrecorded == 1 else f"{self.unrecorded} weights"
        return (
            f"; {weights} ran on ggml's own kernels, which do not report their rounding, so edges there are "
            "not aligned"
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
        UnsupportedError: see :func:`stored_weights`.
    """
    comparisons: list[LogitComparison] = []
    continuations: list[Continuation] = []
    runs: list[Decisions] = []
    stored = stored_weights(reference, session.path)
    unfaithful = unfaithful_row(reference.model, embeddings)
    with (
        replaced_embeddings(reference.model, embeddings),
        rounded_float_layers(reference.modules(), session.path),
    ):
        for index, ids in enumerate(ids_of):
            progress(ProgressEvent(index, len(ids_of), "prompts", "aligning"))
            run = _run_aligned(reference, session, stored, ids, tokens)
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


def _run_aligned(
    reference: Reference, session: Session, stored: Stored, ids: Sequence[int], tokens: int
) -> _AlignedRun:
    """Run C++ over the prompt, then token by token, and PyTorch over both at once, aligned."""
    with record_activations() as recorded:
        prefill = session.logits(ids)
        steps = _greedy_steps(session, prefill[-1], tokens)
    chosen = [int(step.argmax()) for step in steps]
    run = [*ids, *chosen[:-1]]
    with aligned_rounding(reference.ternary_layers(), recorded, stored) as decisions:
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


def stored_weights(reference: Reference, path: str | os.PathLike[str]) -> Stored:
    """How a file stores the model's ternary weights.

    Raises:
        UnsupportedError: a weight is not in the file, or has a type for which the rounding is not known.
    """
    file = read_gguf(os.fspath(path))
    found = {tensor.name: tensor.type.name for tensor in file.tensors}
    types = {}
    for name in reference.ternary_layers():
        kind = found.get(name)
        if kind not in ALIGNED_TYPES:
            what = "is missing" if kind is None else f"is {kind}"
            raise UnsupportedError(
                f"{file.path}: {name} {what}, so its activations cannot be aligned; expected one of "
                f"{', '.join(ALIGNED_TYPES)}: use --plain to compare the logits without alignment"
            )
        types[name] = kind
    return Stored(types, reference.unpacked, reference.input_orders(path), reference.after_gelu())


def _alignment(agreement: Agreement, runs: Sequence[Decisions], unfaithful: str | None) -> Alignment:
    total = Decisions.of_all(runs)
    return Alignment(
        agreement=agreement,
        compared=total.compared,
        adopted=total.adopted,
        farthest_steps=total.farthest,
        unexplained=total.unexplained,
        first_unexplained=total.first_unexplained,
        unfaithful=unfaithful,
        unrecorded=len(total.unrecorded),
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
