"""Runs the same tokens on both sides and compares every step of every block by name.

Each prompt runs once through C++, which records every named tensor, and up to three times through PyTorch:

- *own*: every step is shown the input that C++ had, because what C++ computed replaces each step's result
  before the next one. So an error stays in the step that makes it, and every faulty step shows.
- *aligned*: from the tokens on, with the rounding decisions of C++ (see :mod:`bitexport.parity.aligned`).
- *plain*: from the tokens on, as both are. Rounding makes this drift apart with depth on any correct model.

A step parts when PyTorch, on C++'s input, gives a value that is more than :data:`TOLERANCE` away, in steps of
the grid on which the token's values would be rounded to 8 bits: the distance from an edge within which
alignment explains a decision. Float error was found below a tenth of it on every family; the smallest mistake
there is, one trit of a matrix, is a hundred times as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bitexport.gguf.embeddings import Embeddings
from bitexport.parity.layers.difference import Tally
from bitexport.parity.layers.result import LayersReport, StepResult
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference
from bitexport.reference.alignment import TOLERANCE, aligned_rounding
from bitexport.reference.embeddings import ROW_ERROR, replaced_embeddings, unfaithful_row
from bitexport.reference.float_layers import rounded_float_layers
from bitexport.reference.steps import TENSORS, Place, places
from bitexport.reference.visit import visited
from bitexport.runtime.observe import Recorded, record_activations
from bitexport.runtime.session import Session
from bitexport.runtime.trace import Trace, Tracer

#: A prompt's further tokens are not compared: all steps of a batch are held in memory.
MAX_TOKENS = 256
#: A position is an angle in float32, off by its own rounding, which turns a pair of values by as much. Grid
#: steps a position: 127 times the diagonal of a pair, times four roundings.
ANGLE_ERROR = 127 * 2**0.5 * 4 * 2**-24
#: Logits, whose activations ggml rounds for a quantized head: a fraction of their length.
LOGITS_ERROR = 0.005
#: The product of a ternary weight that is not I2_S: ggml rounds its activations otherwise, or not at all;
#: 3% was seen where a few values are far larger than the rest. A finer mistake does not show there.
OTHER_GRID_ERROR = 0.1

_EMBEDDING, _LOGITS, _SHARED_INPUT = "embd", "result_output", "ffn_inp"


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
        session: made with ``tracer``.
        embeddings: the file's.
        ids_of: the tokens of each prompt.
        align: also run aligned; a file with ternary weights that are not I2_S never is.

    Raises:
        UnsupportedError: the reference has no attention function to look at.
        NativeLibraryError: a tensor of the graph could not be read.
    """
    modules = reference.modules()
    found, absent = places(modules, reference.n_layer)
    run = _Run(reference, embeddings, session.path, found)
    for index, ids in enumerate(ids_of):
        progress(ProgressEvent(index, len(ids_of), "prompts", "comparing layers"))
        ids = ids[:MAX_TOKENS]
        with record_activations() as recorded, tracer.record(TENSORS) as trace:
            session.logits(ids)
        run.prompt(ids, trace, recorded, align)
    return LayersReport(
        steps=run.results(),
        absent=absent,
        unnamed=sorted({place.step.name for place in run.unnamed}),
        tokens=sum(min(len(ids), MAX_TOKENS) for ids in ids_of),
        tokens_given=sum(map(len, ids_of)),
        unfaithful=unfaithful_row(reference.model, embeddings),
    )


@dataclass
class _Run:
    reference: Reference
    embeddings: Embeddings
    path: Path
    places: list[Place]
    unnamed: set[Place] = field(default_factory=set)
    _tallies: dict[str, dict[Place, Tally]] = field(default_factory=dict)

    def prompt(self, ids: Sequence[int], trace: Trace, recorded: Recorded, align: bool) -> None:
        """One prompt, in every way."""
        layers = self.reference.ternary_layers()
        known = {name: layer for name, layer in layers.items() if name in recorded}
        orders = self.reference.column_orders()
        model, modules = self.reference.model, self.reference.modules()

        for kind in ("plain", "aligned", "own"):
            if kind == "aligned" and not (align and len(known) == len(layers)):
                continue

            def visit(place: Place, ours: torch.Tensor, kind: str = kind) -> torch.Tensor | None:
                theirs = trace.get(place.tensors, len(ids), place.step.operations)
                if theirs is None:
                    self.unnamed.add(place)
                    return None
                order = orders.get(place.rotated or "")
                values = torch.from_numpy(theirs if order is None else theirs[:, np.argsort(order)])
                allowed, relative = self._allowed(place, recorded, layers.keys(), len(ids))
                tally = self._tallies.setdefault(kind, {}).setdefault(place, Tally())
                tally.add(ours, values, allowed, relative=relative)
                return values if kind == "own" and place.step.name != _SHARED_INPUT else None

            with ExitStack() as stack:
                if kind != "plain":
                    stack.enter_context(replaced_embeddings(model, self.embeddings))
                    stack.enter_context(rounded_float_layers(modules, self.path))
                stack.enter_context(visited(model, modules, self.places, visit))
                if kind != "plain":
                    stack.enter_context(aligned_rounding(known, recorded))
                self.reference.logits(ids)

    def _allowed(
        self, place: Place, recorded: Recorded, ternary: object, tokens: int
    ) -> tuple[torch.Tensor, bool]:
        """What each token may differ by, and whether that is a fraction of its vector's length."""
        if place.step.name == _EMBEDDING:
            return torch.full((tokens,), ROW_ERROR.get(self.embeddings.embedding_type, 0.1)), True
        if place.step.name == _LOGITS:
            return torch.full((tokens,), LOGITS_ERROR), True
        if place.weight in ternary and place.weight not in recorded:  # type: ignore[operator]
            return torch.full((tokens,), OTHER_GRID_ERROR), True
        allowed = torch.full((tokens,), TOLERANCE, dtype=torch.float64)
        if place.step.rotated and not place.step.modules:
            allowed += ANGLE_ERROR * torch.arange(tokens)
        return allowed, False

    def results(self) -> list[StepResult]:
        """In PyTorch's order."""
        plain, aligned = self._tallies["plain"], self._tallies.get("aligned", {})
        return [
            StepResult(
                name=place.name,
                layer=place.layer,
                decided_by=place.decided_by,
                # the other runs look tokens up in the file's own embedding
                own=(plain[place] if place.step.name == _EMBEDDING else own).result(),
                aligned=aligned[place].result() if place in aligned else None,
                plain=plain[place].result(),
            )
            for place, own in self._tallies["own"].items()
        ]
