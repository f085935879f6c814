"""Linear layers whose weights are ternary, and their arithmetic apart from the rounding of their input.

Three kinds of layers run ternary: the two classes of transformers' BitNet integration, with which models like
BitNet are trained; :class:`TernaryLinear`, whose weights our packings delivered; and :class:`TernaryExperts`,
the same for the experts of a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bitexport.errors import UnsupportedError
from bitexport.reference.grids import Grid, on_grid


class TernaryLinear(nn.Linear):
    """A linear layer with dequantized ternary weights, float32 ``[out, in]``.

    Args:
        weight, bias: as in nn.Linear.
        grid: how its input was rounded in training; :attr:`Grid.FLOAT` if only weights were quantized.
    """

    #: As in transformers' BitNet layers; :func:`~bitexport.reference.norms.connect_norms` moves it.
    rms_norm: Any = None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, grid: Grid) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.grid = grid

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Round the input, then multiply."""
        return functional.linear(on_grid(input, self.grid), self.weight, self.bias)


#: Computes one expert's product: its projection ("gate", "up" or "down"), its number, its input
#: ``[rows, in]`` and its weight ``[out, in]``.
ExpertProduct = Callable[[str, int, torch.Tensor, torch.Tensor], torch.Tensor]


class TernaryExperts(nn.Module):
    """The experts of a mixture: each projection rounds its input as a linear layer of that expert would.

    Replaces a module of transformers that holds all experts in two parameters, ``gate_up_proj``
    ``[experts, 2 * inner, hidden]`` and ``down_proj`` ``[experts, hidden, inner]``.

    Args:
        original: that module; it keeps the weights.
        names: the GGUF names of the projections' weights, by "gate", "up" and "down".
        grids: how the input of each projection was rounded in training.

    Raises:
        UnsupportedError: the module keeps its weights in another layout.
    """

    def __init__(self, original: Any, names: Mapping[str, str], grids: Mapping[str, Grid]) -> None:
        super().__init__()
        plain = original.has_gate and original.is_concatenated and not original.is_transposed
        if not plain or original.has_bias or original.has_post_expert_norm:
            raise UnsupportedError(
                f"the experts of {type(original).__name__} are not in the layout gate_up_proj, down_proj "
                "without bias, so they cannot run in PyTorch; request support in an issue"
            )
        self.original = original
        self.names = dict(names)
        self.grids = dict(grids)
        self.product: ExpertProduct = self._as_trained

    def weight(self, projection: str, expert: int) -> torch.Tensor:
        """One expert's matrix, float32 ``[out, in]``."""
        if projection == "down":
            return self.original.down_proj[expert]  # type: ignore[no-any-return]
        gate, up = self.original.gate_up_proj[expert].chunk(2)
        return gate if projection == "gate" else up  # type: ignore[no-any-return]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum of the chosen experts' outputs, ``[tokens, hidden]``.

        Args:
            hidden_states: ``[tokens, hidden]``.
            top_k_index, top_k_weights: the experts of each token and their weights, ``[tokens, slots]``.
        """
        result = torch.zeros_like(hidden_states)
        for expert in torch.unique(top_k_index).tolist():
            if expert >= len(self.original.down_proj):  # a slot that is not used
                continue
            # in ascending order of token, then slot
            tokens, slots = torch.where(top_k_index == expert)
            x = hidden_states[tokens]
            parts = [self.product(name, expert, x, self.weight(name, expert)) for name in ("gate", "up")]
            inner = self.original._apply_gate(torch.cat(parts, dim=-1))
            output = self.product("down", expert, inner, self.weight("down", expert))
            result.index_add_(0, tokens, output * top_k_weights[tokens, slots, None])
        return result

    def _as_trained(
        self, projection: str, _expert: int, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return functional.linear(on_grid(x, self.grids[projection]), weight)


@dataclass(frozen=True, slots=True)
class WeightAndBias:
    """What a ternary layer multiplies its rounded input by, and adds: float32 ``[out, in]`` and ``[out]``."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def quantized_weight(layer: Any) -> WeightAndBias:
    """The ternary weights of one linear layer, as it computes them itself.

    Raises:
        UnsupportedError: its class is not known here.
    """
    from transformers.integrations.bitnet import AutoBitLinear, BitLinear, WeightQuant, unpack_weights

    if isinstance(layer, AutoBitLinear) and layer.online_quant:
        return WeightAndBias(WeightQuant.apply(layer.weight), layer.bias)
    if isinstance(layer, AutoBitLinear):
        bias = None if layer.bias is None else layer.bias * layer.weight_scale
        return WeightAndBias(layer.weight * layer.weight_scale, bias)
    if isinstance(layer, BitLinear):
        weight = unpack_weights(layer.weight, dtype=torch.float32) / layer.weight_scale
        return WeightAndBias(weight, layer.bias)
    if isinstance(layer, TernaryLinear):
        return WeightAndBias(layer.weight, layer.bias)
    raise UnsupportedError(
        f"a {type(layer).__name__} is not a ternary layer; expected one of transformers' BitNet integration"
    )


def training_grids(layers: Iterable[nn.Module]) -> set[Grid]:
    """How ternary layers rounded their inputs in training."""
    found: set[Grid] = set()
    for layer in layers:
        if isinstance(layer, TernaryExperts):
            found.update(layer.grids[projection] for projection, name in layer.names.items() if name)
        else:
            found.add(layer.grid if isinstance(layer, TernaryLinear) else Grid.TOKEN)
    return found


@contextmanager
def unrounded(layer: TernaryLinear | TernaryExperts) -> Iterator[None]:
    """Within the block, the layer multiplies float activations."""
    if isinstance(layer, TernaryLinear):
        grid, layer.grid = layer.grid, Grid.FLOAT
        try:
            yield
        finally:
            layer.grid = grid
        return
    grids, layer.grids = layer.grids, dict.fromkeys(layer.grids, Grid.FLOAT)
    try:
        yield
    finally:
        layer.grids = grids
