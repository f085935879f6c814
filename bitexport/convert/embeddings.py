"""Chooses the type of the token embedding and of a float output head."""

from __future__ import annotations

from collections.abc import Sequence

from bitexport.checkpoint.packings import Packing, Scales
from bitexport.checkpoint.packings.float_ternary import find_scales
from bitexport.checkpoint.packings.master import MasterWeights
from bitexport.checkpoint.packings.pre_dequantized import PreDequantized
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.convert.choices import AUTO, EMBED_AUTO
from bitexport.errors import UnsupportedError
from bitexport.gguf.packers.block_scale import fits_float16
from bitexport.gguf.types import F32, TYPES, TensorType, smallest_exact


def embedding_type(
    checkpoint: Checkpoint,
    packing: Packing,
    name: str,
    shape: Sequence[int],
    wanted: str,
    warnings: list[str],
    *,
    look: bool = True,
) -> tuple[TensorType, Scales | None]:
    """The type of a matrix that is not a linear layer, and its scales if it is written as trits.

    Args:
        name: the tensor's name in the checkpoint.
        shape: ``[vocabulary, width]``.
        wanted: one of :data:`~bitexport.convert.choices.EMBED_CHOICES`.
        warnings: extended if the usual type cannot store the shape.
        look: whether to look for ternary values.
    """
    if wanted != AUTO:
        return TYPES[wanted], None
    scales = ternary_scales(checkpoint, packing, name) if look else None
    if scales is not None:
        # rows of an embedding are looked up one by one, and I2_S has none
        kind = smallest_exact(shape, scales.group or shape[-1])
        return kind if fits_float16(scales.low or 1.0, scales.high or 1.0) else F32, scales
    kind = next(TYPES[choice] for choice in EMBED_AUTO if TYPES[choice].fits(shape))
    if kind.name != EMBED_AUTO[0]:
        usual = TYPES[EMBED_AUTO[0]]
        warnings.append(
            f"'{name}' has rows of {shape[-1]} weights, which is not a multiple of {usual.block}: it is "
            f"written as {kind.name} instead of {usual.name}"
        )
    return kind, None


def ternary_scales(checkpoint: Checkpoint, packing: Packing, name: str) -> Scales | None:
    """The scales of an embedding or a head that is ternary; None if it is not."""
    if packing.holds(checkpoint, name):
        return packing.scales(checkpoint, name)
    if not isinstance(packing, (MasterWeights, PreDequantized)):
        return None  # these unpack floats
    info = checkpoint.info(name)
    if info.dtype not in FLOAT_DTYPES or len(info.shape) != 2:
        return None
    try:
        return find_scales(checkpoint, name)
    except UnsupportedError:
        return None  # nearly ternary is not ternary
