"""What types with a scale for every row have in common."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFScaleError
from bitexport.ternary import AnyTernary, collapse_equal_scales


def from_rows(trits: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], type_name: str) -> AnyTernary:
    """A tensor of trits ``[out, in]``, in place, and of one scale per row; a row with scale 0 is all zeros.

    Args:
        scales: float32 ``[out]``.
        type_name: for the message.

    Raises:
        GGUFScaleError: a scale is negative, NaN or infinite.
    """
    wrong = ~np.isfinite(scales) | (scales < 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise GGUFScaleError(
            f"row {row} of {type_name} has scale {scales[row]}; expected a positive, finite number: the file "
            "is damaged, download it again"
        )
    trits[scales == 0] = 0
    used = np.any(trits, axis=1)
    return collapse_equal_scales(trits, np.where(used, scales, np.float32(0))[:, None])
