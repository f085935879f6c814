"""Runs the same tokens on both sides and compares every step of every block by name.

Each prompt runs once through C++, which records every named tensor, and up to three times through PyTorch:

- *isolated*: each step's result is replaced by what C++ computed before the next step runs, so that every
  step has the input that C++ had. An error shows only in the step that makes it, and every faulty step shows.
- *aligned*: from the input tokens, with the rounding decisions of C++ (see :mod:`bitexport.parity.aligned`).
- *plain*: from the input tokens, unmodified. Because of rounding, the two sides drift apart with depth on any
  correct model.

A step diverges when PyTorch, on the input that C++ had, computes a value that is more than :data:`TOLERANCE`
away, in steps of the grid on which the token's values would be rounded to 8 bits. Alignment uses the same
distance from an edge to explain a decision. On every family, float error is below a tenth of it, and the
smallest possible mistake, one trit of a matrix, is a hundred times as large.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from bitexport.gguf.embeddings import Embeddings
from bitexport.gguf.reader import read_gguf
from bitexport.parity.aligned import stored_weights
from bitexport.parity.layers.difference import DifferenceAccumulator
from bitexport.parity.layers.result import LayersReport, StepResult
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference
from bitexport.reference.alignment import GELU_TOLERANCE, TOLERANCE, Stored, aligned_rounding
from bitexport.reference.embeddings import ROW_ERROR, replaced_embeddings, unfaithful_row
from bitexport.reference.float_layers import rounded_float_layers
from bitexport.reference.steps import TENSORS, Place, places
from bitexport.reference.visit import Visit, visited
from bitexport.runtime.observe import Recorded, record_activations
from bitexport.runtime.session import Session
from bitexport.runtime.trace import Trace, Tracer

#: Tokens compared per prompt: all steps of a batch are in memory at once.
MAX_TOKENS = 256
#: Extra tolerance after RoPE, in grid steps per position. A position is a float32 angle, whose rounding error
#: rotates a pair of values by as much: 127 times the diagonal of a pair, times four roundings.
ANGLE_ERROR = 127 * 2**0.5 * 4 * 2**-24
#: Tolerance for logits, whose activations ggml rounds for a quantized head: a fraction of their L2 norm.
LOGITS_ERROR = 0.005

_EMBEDDING, _LOGITS, _SHARED_INPUT, _GATED = "embd", "result_output", "ffn_inp", "ffn_gated"

_Mode = Literal["plain", "aligned", "isolated"]


def compare_layers(
    reference: Reference,
    session: Session,
    tracer: Tracer,
    embeddings: Embeddings,
    ids_of: Sequence[Sequence[int]],
    *,
    align: bool = True,
    progress: Progress = ignore,
) -> LayersReport:
    """Compare every step.

    Args:
        session: opened with ``tracer``.
        embeddings: those of the file.
        ids_of: the token ids of each prompt.
        align: also run aligned.

    Raises:
        UnsupportedError: see :func:`~bitexport.parity.aligned.stored_weights`; or the reference has no
            attention function to observe.
        NativeLibraryError: a tensor of the graph could not be read.
    """
    stored = stored_weights(reference, session.path)
    reference.mark_layouts()
    graph = str(read_gguf(session.path).metadata.get("general.architecture"))
    found, absent = places(reference.modules(), reference.n_layer, graph)
    comparison = _StepComparison(reference, embeddings, session.path, stored, found)
    for index, ids in enumerate(ids_of):
        progress(ProgressEvent(index, len(ids_of), "prompts", "comparing layers"))
        ids = ids[:MAX_TOKENS]
        with record_activations() as recorded, tracer.record(TENSORS) as trace:
            session.logits(ids)
        comparison.add_prompt(ids, trace, recorded, align)
    return LayersReport(
        steps=comparison.results(),
        absent=absent,
        unnamed=sorted({place.step.name for place in comparison.unnamed}),
        tokens=sum(min(len(ids), MAX_TOKENS) for ids in ids_of),
        tokens_given=sum(map(len, ids_of)),
        unfaithful=unfaithful_row(reference.model, embeddings),
    )


@dataclass
class _StepComparison:
    """Compares the steps of one prompt after another.

    Attributes:
        unnamed: places whose tensors C++ does not name.
    """

    reference: Reference
    embeddings: Embeddings
    path: Path
    stored: Stored
    places: list[Place]
    unnamed: set[Place] = field(default_factory=set)
    _differences: dict[_Mode, dict[Place, DifferenceAccumulator]] = field(default_factory=dict)

    def add_prompt(self, ids: Sequence[int], trace: Trace, recorded: Recorded, align: bool) -> None:
        """Run one prompt through PyTorch in every mode and compare it with what C++ recorded."""
        modes: list[_Mode] = ["plain", "aligned", "isolated"] if align else ["plain", "isolated"]
        for mode in modes:
            visit = self._visit(mode, len(ids), trace)
            with self._running(mode, recorded, visit):
                self.reference.logits(ids)

    @cached_property
    def orders(self) -> dict[str, npt.NDArray[np.intp]]:
        """The row orders of queries and keys."""
        return self.reference.column_orders(self.path)

    @contextmanager
    def _running(self, mode: _Mode, recorded: Recorded, visit: Visit) -> Iterator[None]:
        """Within the block, the reference runs in ``mode`` and every step is passed to ``visit``."""
        model = self.reference.model
        modules = self.reference.modules()
        with ExitStack() as stack:
            if mode != "plain":
                stack.enter_context(replaced_embeddings(model, self.embeddings))
                stack.enter_context(rounded_float_layers(modules, self.path))
            stack.enter_context(visited(model, modules, self.places, visit))
            if mode != "plain":
                layers = self.reference.ternary_layers()
                stack.enter_context(aligned_rounding(layers, recorded, self.stored))
            yield

    def _visit(self, mode: _Mode, tokens: int, trace: Trace) -> Visit:
        """A function that compares a step with the trace, and in isolated mode replaces its values."""
        orders = self.orders
        differences = self._differences.setdefault(mode, {})

        def visit(place: Place, python: torch.Tensor) -> torch.Tensor | None:
            traced = trace.get(place.tensors, tokens, place.step.operations)
            if traced is None:
                self.unnamed.add(place)
                return None
            order = orders.get(place.rotated or "")
            cpp = torch.from_numpy(traced if order is None else traced[:, np.argsort(order)])
            tolerance, relative = self._tolerance(place, tokens)
            differences.setdefault(place, DifferenceAccumulator()).add(
                python, cpp, tolerance, relative=relative
            )
            return cpp if mode == "isolated" and place.step.name != _SHARED_INPUT else None

        return visit

    def _tolerance(self, place: Place, tokens: int) -> tuple[torch.Tensor, bool]:
        """The tolerance for each token, and whether it is a fraction of the L2 norm instead of grid steps."""
        if place.step.name == _EMBEDDING:
            return torch.full((tokens,), ROW_ERROR.get(self.embeddings.embedding_type, 0.1)), True
        if place.step.name == _LOGITS:
            return torch.full((tokens,), LOGITS_ERROR), True
        gelu = place.step.name == _GATED and self.stored.after_gelu
        tolerance = torch.full((tokens,), GELU_TOLERANCE if gelu else TOLERANCE, dtype=torch.float64)
        if place.step.rotated and not place.step.modules:
            tolerance += ANGLE_ERROR * torch.arange(tokens)
        return tolerance, False

    def results(self) -> list[StepResult]:
        """All steps, in PyTorch's order."""
        plain, aligned = self._differences["plain"], self._differences.get("aligned", {})
        return [
            StepResult(
                name=place.name,
                layer=place.layer,
                decided_by=place.decided_by,
                # only the plain run uses the checkpoint's embedding; the others use the file's
                isolated=(plain[place] if place.step.name == _EMBEDDING else isolated).result(),
                aligned=aligned[place].result() if place in aligned else None,
                plain=plain[place].result(),
            )
            for place, isolated in self._differences["isolated"].items()
        ]
