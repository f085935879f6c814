"""From a packed checkpoint back to master weights, to continue its training: the reverse of ``pack``.

What the master weights were is lost. These are the plainest that quantize to the same trits and scale: as a
trit is zero below half the mean of all magnitudes and the scale is that mean, every nonzero weight gets the
magnitude scale / (share of nonzero trits), which is the scale or more, and every other one is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitexport.checkpoint import Checkpoint
from bitexport.errors import UnsupportedError
from bitexport.reference.delivered import deliver
from bitexport.train.student.bitlinear import quantize_weight

# Steps of float32 by which rounding may move the mean of a whole tensor.
_MOST_STEPS = 64
# The most that one weight may be, as a multiple of all others.
_LARGEST_ONE = 8
# Weights that are tried as this one.
_TRIED = 32


def unpacked_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of a packed checkpoint, float32 by name, with master weights in place of the packed ones.

    Raises:
        CheckpointError: a tensor is damaged.
        UnsupportedError: no master weights quantize to one of its tensors.
    """
    delivered = deliver(checkpoint)
    for name in delivered.ternary:
        delivered.state[name] = master_weights(delivered.state[name], name)
    return delivered.state


def master_weights(values: Tensor, name: str) -> Tensor:
    """Master weights whose quantization is ``values``: the same trits, and the same scale to the last bit.

    A scale that is not the result of quantization in training may differ by one step of float32.

    Args:
        values: float32 ``[out, in]``, each one is -scale, 0 or scale.
        name: of the tensor, for the message.

    Raises:
        UnsupportedError: all values are zero, there are several scales, or training cannot give the scale.
    """
    magnitudes = values.abs()
    scale = magnitudes.max()
    used = magnitudes > 0
    if not scale > 0 or not torch.equal(magnitudes[used], scale.expand(int(used.sum()))):
        raise UnsupportedError(
            f"tensor '{name}' has {'several scales' if scale > 0 else 'only zeros'}; expected one scale for "
            "the whole tensor, to continue training from packed weights: give the folder that was trained"
        )
    master = _with_scale(values, scale)
    found = quantize_weight(master)
    if not torch.equal(found.sign(), values.sign()) or not torch.allclose(found, values, rtol=3e-7, atol=0):
        raise UnsupportedError(
            f"tensor '{name}' has the scale {scale.item():g}, which quantization in training cannot give; "
            "expected at least 1e-5: give the folder that was trained"
        )
    return master


def _with_scale(values: Tensor, scale: Tensor) -> Tensor:
    """Master weights with the signs of ``values`` that quantization gives ``scale``.

    Their mean is rounded, and so is every sum on the way to it. So the magnitude of all weights is the
    largest with which the scale is not too large, and one of the first nonzero weights gets what is missing.
    It depends on the order of the sum which of them can.
    """
    signs = values.sign()
    target = float(scale)
    nominal = scale.double() * values.numel() / values.count_nonzero()
    bits = int(nominal.float().view(torch.int32))  # as an integer, the next float is one more

    def scale_of(master: Tensor) -> float:
        return float(quantize_weight(master).abs().max())

    def with_steps(steps: int) -> Tensor:
        return signs * _float_of(bits + steps)

    def with_one(place: int, bits_of_one: int) -> Tensor:
        changed = master.clone()
        changed.view(-1)[place] = _float_of(bits_of_one) * signs.view(-1)[place]
        return changed

    steps = _last(-_MOST_STEPS, _MOST_STEPS, lambda count: scale_of(with_steps(count)) <= target)
    master = with_steps(steps)
    largest = int((_float_of(bits) * _LARGEST_ONE).view(torch.int32))
    completed = master
    for place in signs.flatten().nonzero()[:_TRIED, 0].tolist():

        def fits(bits_of_one: int, place: int = place) -> bool:
            return scale_of(with_one(place, bits_of_one)) <= target

        completed = with_one(place, _last(bits + steps, largest, fits))
        if scale_of(completed) == target:
            break
    return completed


def _float_of(bits: int) -> Tensor:
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


def _last(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The last of ``low`` to ``high`` that fits, all before it doing so; ``low`` if none does."""
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
