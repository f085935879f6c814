"""The vectors of a text's tokens in PyTorch: the output of a decoder's last norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from bitexport.errors import UsageError
from bitexport.reference.model import Reference, eager


def token_vectors(reference: Reference, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """The vector of every token: float32 ``[T, hidden]``.

    Raises:
        UsageError: there are no tokens.
    """
    if not ids:
        raise UsageError("there are no tokens to run; give a text that is not empty")
    with torch.inference_mode(), eager(), reference.threads():
        output = reference.model.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    return output.last_hidden_state[0].numpy()  # type: ignore[no-any-return]
