"""One model at several degrees of quantization: the same weights, but different arithmetic in the layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, WeightQuant, unpack_weights

from bitexport.doctor.samples import Sample
from bitexport.errors import UnsupportedError
from bitexport.metrics.likelihood import GivesLogits, token_losses
from bitexport.metrics.logits import log_softmax
from bitexport.reference import Reference
from bitexport.reference.ternary_layers import TernaryExperts, TernaryLinear, training_grids, unrounded

#: The stages by name, in the order in which they run, and what the ternary layers compute in each.
STAGES: Mapping[str, str] = MappingProxyType(
    {
        "float": "master weights, nothing quantized",
        "weights": "weights quantized, activations float",
        "both": "weights and activations quantized, as transformers runs it",
        "c++": "the GGUF file on our libllama",
    }
)

TOP = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that may come next, and its probability."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Stage:
    """How one stage predicts the samples; every figure is by kind of sample.

    Attributes:
        name: one of :data:`STAGES`.
        losses: mean nats per token.
        entropies: entropy in nats of the next token after the prompt.
        end: the probability that the text ends after the prompt; None if the model has no end token.
        top: the most likely tokens after the prompt.
    """

    name: str
    losses: dict[str, float]
    entropies: dict[str, float]
    end: dict[str, float | None]
    top: dict[str, list[Candidate]]

    def perplexity(self, kind: str) -> float:
        """exp of the loss; infinite if that is too large or not a number."""
        loss = self.losses[kind]
        return math.exp(loss) if loss < 700 else math.inf


def measure(
    name: str, model: GivesLogits, samples: Sequence[Sample], reference: Reference, ends: Sequence[int]
) -> Stage:
    """Run the samples through one model. ``reference`` only decodes tokens; ``ends`` are its end tokens."""
    stage = Stage(name, {}, {}, {}, {})
    for sample in samples:
        total = sum(token_losses(model.logits(ids), ids).sum() for ids in sample.windows)
        stage.losses[sample.kind] = float(total) / sample.tokens
        logs = log_softmax(model.logits(sample.prompt_ids)[-1].astype(np.float64))
        probabilities = np.exp(logs)
        stage.entropies[sample.kind] = entropy(logs)
        stage.end[sample.kind] = float(probabilities[list(ends)].sum()) if ends else None
        best = np.argsort(-logs, kind="stable")[:TOP]
        stage.top[sample.kind] = [
            Candidate(int(i), reference.text([int(i)]), float(probabilities[i])) for i in best
        ]
    return stage


def entropy(logs: npt.NDArray[np.float64]) -> float:
    """Entropy in nats of log-probabilities ``[V]``."""
    return float(-(np.exp(logs) * np.where(np.isneginf(logs), 0, logs)).sum())


def end_tokens(reference: Reference) -> list[int]:
    """The tokens that end a text, from the model's configuration and the tokenizer."""
    found: set[int] = set()
    for settings in (reference.model.config, reference.model.generation_config, reference.tokenizer):
        ids = getattr(settings, "eos_token_id", None)
        found.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
    return sorted(token for token in found if isinstance(token, int) and 0 <= token < reference.n_vocab)


def has_master_weights(reference: Reference) -> bool:
    """Whether the checkpoint has the float weights from before quantization, at least for some layers."""
    return any(getattr(layer, "online_quant", False) for layer in reference.ternary_layers().values())


def quantizes_activations(reference: Reference) -> bool:
    """Whether the model was trained with quantized activations, at least those of some layers."""
    return any(grid.has_levels for grid in training_grids(reference.ternary_layers().values()))


@contextmanager
def running_as(reference: Reference, stage: str) -> Iterator[None]:
    """Within the block, the ternary layers compute as in this stage; no weight is copied.

    Raises:
        UnsupportedError: a layer is of a class whose arithmetic is not known here.
    """
    with ExitStack() as undo:
        if stage != "both":
            for name, layer in reference.ternary_layers().items():
                if isinstance(layer, (TernaryExperts, TernaryLinear)):
                    undo.enter_context(unrounded(layer))
                    continue
                layer.forward = _forward(name, layer, stage)
                undo.callback(delattr, layer, "forward")
        yield


def _forward(name: str, layer: Any, stage: str) -> Any:
    def normed(x: torch.Tensor) -> Any:
        return x if layer.rms_norm is None else layer.rms_norm(x)

    def master(x: torch.Tensor) -> torch.Tensor:
        weight = layer.weight if stage == "float" else WeightQuant.apply(layer.weight)
        return functional.linear(normed(x), weight, layer.bias)

    def unpacked(x: torch.Tensor) -> Any:
        return functional.linear(normed(x), layer.weight, layer.bias) * layer.weight_scale

    def packed(x: torch.Tensor) -> Any:
        product = functional.linear(normed(x), unpack_weights(layer.weight, dtype=x.dtype))
        product = product / layer.weight_scale
        return product if layer.bias is None else product + layer.bias

    if isinstance(layer, AutoBitLinear) and layer.online_quant:
        return master
    if isinstance(layer, AutoBitLinear):
        return unpacked
    if stage != "float" and isinstance(layer, BitLinear):
        return packed
    raise UnsupportedError(
        f"{name}: a {type(layer).__name__} cannot run in stage '{stage}'; expected a layer of transformers' "
        "BitNet integration with master weights"
    )
