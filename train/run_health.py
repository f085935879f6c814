"""Early signs of a run that goes wrong, of every layer: measured at each evaluation, written to the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitexport.train.batch import Batch
from bitexport.train.student.bitlinear import BitLinear

#: The lists of a line of the log, one number per layer:
#: ``zero_trits``, the part of the trits that are 0;
#: ``trit_flips``, the part of the trits that change in a step, a mean since the last evaluation;
#: ``weight_scale``, the mean of the scales of its projections;
#: ``activation_peak``, max|x| / RMS of the inputs of its projections, a mean over tokens: 8-bit activations
#: have 127 / peak steps per RMS.
HEALTH_KEYS = ("zero_trits", "trit_flips", "weight_scale", "activation_peak")
# Trits of a projection that are compared with earlier ones.
_SAMPLE = 1 << 16


class RunHealth:
    """Measures a student with ternary layers; a model without them has an empty result."""

    def __init__(self, model: Any) -> None:
        self._layers: list[list[BitLinear]] = [
            [module for module in layer.modules() if isinstance(module, BitLinear)]
            for layer in model.model.layers
        ]
        self.last: dict[str, list[float]] = {}
        self._trits: list[Tensor] = []  # int8, of a sample, at the last measurement
        self._step = 0  # of the last measurement

    def begin(self, step: int) -> None:
        """The training starts after ``step``, unless :meth:`load` has said so."""
        if not self._trits:
            self._trits = [_sampled_trits(layer) for layer in self._flat()]
            self._step = step

    @torch.no_grad()
    def measure(self, model: Any, batch: Batch, step: int) -> None:
        """Set :attr:`last`, from the weights and one forward pass over ``batch`` on the model's device."""
        if not self._flat():
            return
        self.begin(step)
        trits = [_sampled_trits(layer) for layer in self._flat()]
        steps = max(1, step - self._step)
        flips = [
            (now != before.to(now.device)).float().mean() / steps
            for now, before in zip(trits, self._trits, strict=True)
        ]
        peaks = self._peaks(model, batch)
        values = {
            "zero_trits": self._by_layer([(now == 0).float().mean() for now in trits]),
            "trit_flips": self._by_layer(flips),
            "weight_scale": self._by_layer([layer.weight.float().abs().mean() for layer in self._flat()]),
            "activation_peak": self._by_layer(peaks),
        }
        stacked = torch.stack(list(values.values())).tolist()
        self.last = {name: _rounded(row) for name, row in zip(values, stacked, strict=True)}
        self._trits = trits
        self._step = step

    def describe(self) -> str:
        """For a line of text; empty if nothing was measured."""
        if not self.last:
            return ""
        zero, flips, peaks = (self.last[name] for name in ("zero_trits", "trit_flips", "activation_peak"))
        return (
            f"trits: {min(zero):.0%} to {max(zero):.0%} zero per layer, {sum(flips) / len(flips):.2%} flip "
            f"per step; activations: peaks of {min(peaks):.1f} to {max(peaks):.1f} times the RMS"
        )

    def save(self, path: Path) -> None:
        tensors = {str(number): trits.cpu() for number, trits in enumerate(self._trits)}
        save_file({**tensors, "step": torch.tensor(self._step)}, path)

    def load(self, path: Path) -> None:
        """What :meth:`save` wrote; checkpoints of earlier versions have nothing."""
        if path.exists():
            tensors = load_file(path)
            self._step = int(tensors.pop("step"))
            self._trits = [tensors[str(number)] for number in range(len(tensors))]

    def _flat(self) -> list[BitLinear]:
        return [projection for layer in self._layers for projection in layer]

    def _by_layer(self, values: list[Tensor]) -> Tensor:
        """Means over the projections of each layer, ``[layers]``."""
        found = iter(values)
        return torch.stack([torch.stack([next(found) for _ in layer]).mean() for layer in self._layers])

    def _peaks(self, model: Any, batch: Batch) -> list[Tensor]:
        peaks: dict[nn.Module, Tensor] = {}
        real = batch["attention_mask"].bool()

        def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].float()
            ratio = x.abs().amax(-1) / x.square().mean(-1).sqrt().clamp(min=1e-12)  # [B, T]
            peaks[module] = ratio.masked_fill(~real, 0.0).sum() / real.sum().clamp(min=1)

        hooks = [layer.register_forward_pre_hook(look) for layer in self._flat()]
        try:
            # Hooks would be compiled into the layers.
            with torch.compiler.set_stance("force_eager"):
                model(input_ids=batch["input_ids"], attention_mask=None, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return [peaks[layer] for layer in self._flat()]


def _sampled_trits(layer: BitLinear) -> Tensor:
    """Int8, of evenly spaced weights: round(w / mean|w|) within -1 and 1, as in a forward pass."""
    weight = layer.weight.detach().float()
    scale = weight.abs().mean().clamp(min=1e-5)
    flat = weight.flatten()
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    return (sample * (1.0 / scale)).round().clamp(-1, 1).to(torch.int8)


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
