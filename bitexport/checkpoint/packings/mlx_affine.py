"""Weights of MLX's affine quantization with 2 bits, which ternary models are published in.

``weight`` is uint32 ``[out, in / 16]``: column ``16 i + k`` is in bits 2k+1..2k of word i, as a code q.
``scales`` and ``biases`` are ``[out, in / g]``, and a value is ``scale * q + bias``. It is ternary if the
bias is minus the scale, so that q - 1 is the trit, and no code is 3. The embedding and the head of such
models are usually stored in the same way. config.json has ``quantization``: ``{"group_size": g, "bits": 2}``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.packings.base import Scales
from bitexport.checkpoint.packings.stored_scales import per_row, scales_of
from bitexport.checkpoint.packings.words import PER_WORD, InWords, codes_of_words
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.ternary import AnyTernary, grouped


class MLXAffine(InWords):
    """Two bits per weight in uint32 words, with a scale and a bias for each group of columns."""

    name = "mlx-affine"
    recognised_by = "uint32 `weight` [out, in / 16] with `scales` and `biases`; `quantization` with 2 bits"
    meaning = "(code - 1) * scale; biases must be -scales"

    def partners(self, weight_name: str) -> tuple[str, ...]:
        """``scales`` and ``biases``."""
        module = weight_name.removesuffix(".weight")
        return (f"{module}.scales", f"{module}.biases")

    def holds(self, checkpoint: Checkpoint, weight_name: str) -> bool:
        """Whether there are ``scales``."""
        return self.partners(weight_name)[0] in checkpoint.tensors

    def check(self, checkpoint: Checkpoint, weight_name: str) -> None:
        """The weight must be uint32 words of 2 bits, with a scale and a bias for each group of columns."""
        info = checkpoint.info(weight_name)
        scales, biases = (checkpoint.info(name) for name in self.partners(weight_name))
        if info.dtype != "U32" or scales.dtype not in FLOAT_DTYPES or biases.dtype != scales.dtype:
            raise CheckpointError(
                f"tensor '{weight_name}' has dtype {info.dtype}, its scales {scales.dtype}, its biases "
                f"{biases.dtype}; expected U32 and the same float type twice: save the model again with MLX"
            )
        columns = info.shape[-1] * PER_WORD
        fits = len(info.shape) == 2 and per_row(scales.shape, info.shape[0], columns)
        if not fits or biases.shape != scales.shape:
            raise CheckpointError(
                f"tensor '{weight_name}' has shape {list(info.shape)}, its scales {list(scales.shape)}, its "
                f"biases {list(biases.shape)}; expected words of 16 weights, and a scale and a bias for each "
                "group of columns in a row: is quantization in config.json from another model?"
            )

    def scales(self, checkpoint: Checkpoint, weight_name: str) -> Scales:
        """The groups of one weight; only its scales and biases are read."""
        columns = checkpoint.info(weight_name).shape[1] * PER_WORD
        return scales_of(np.abs(self._signed_scales(checkpoint, weight_name)), columns)

    def unpack(self, checkpoint: Checkpoint, weight_name: str) -> AnyTernary:
        """Read one weight.

        Raises:
            UnsupportedError: a code is 3, or a bias is not minus its scale.
        """
        words = checkpoint.read(weight_name)
        codes = codes_of_words(words, words.shape[1] * PER_WORD)
        if codes.max(initial=0) > 2:
            row, column = np.argwhere(codes > 2)[0]
            raise _not_ternary(weight_name, f"code 3 occurs in row {row}, column {column}")
        trits = codes.view(np.int8)
        trits -= np.int8(1)
        scales = self._signed_scales(checkpoint, weight_name)
        if (scales < 0).any():
            groups = trits.reshape(*scales.shape, -1)
            np.negative(groups, out=groups, where=scales[:, :, None] < 0)
        return grouped(trits, np.abs(scales))

    def _signed_scales(self, checkpoint: Checkpoint, weight_name: str) -> npt.NDArray[np.float32]:
        scales, biases = (checkpoint.read(name) for name in self.partners(weight_name))
        wrong = biases != -scales
        if wrong.any():
            row, group = np.argwhere(wrong)[0]
            raise _not_ternary(
                weight_name,
                f"row {row}, group {group} has scale {scales[row, group]:g} and bias {biases[row, group]:g}",
            )
        found: npt.NDArray[np.float32] = scales
        return found


def _not_ternary(name: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"tensor '{name}' is 2-bit affine, not ternary: {why}; expected biases that are minus the scales, "
        "and codes 0, 1 and 2: convert the float checkpoint of this model instead"
    )


def without_config(name: str) -> CheckpointError:
    """The error to raise for a tensor of MLX's form when config.json does not describe it."""
    return CheckpointError(
        f"tensor '{name}' has dtype U32, as MLX's weights do, but config.json does not describe them; "
        'expected an entry "quantization", such as {"group_size": 128, "bits": 2} for groups of 128 columns: '
        "copy it from the model's original config.json"
    )
