"""Packers for 2-bit words, written from the descriptions of the formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

#: The quantization_config that compressed-tensors writes for symmetric 2-bit weights.
COMPRESSED_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 2,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 128,
                "actorder": None,
            },
            "input_activations": None,
            "output_activations": None,
        }
    },
    "ignore": ["lm_head"],
}


def words_of(codes: np.ndarray) -> np.ndarray:
    """Codes of 0 to 3, ``[out, in]``, as uint32 words of 16; a row is padded with zeros."""
    out, columns = codes.shape
    count = -(-columns // 16)
    words = np.zeros((out, count), dtype=np.uint64)
    for column in range(columns):
        words[:, column // 16] += codes[:, column].astype(np.uint64) * np.uint64(4 ** (column % 16))
    return words.astype(np.uint32)


def compressed_tensors(module: str, trits: np.ndarray, scales: np.ndarray) -> dict[str, torch.Tensor]:
    """A weight ``[out, in]`` in the ``pack-quantized`` form; values of -2 are accepted as well."""
    words = words_of((trits + 2).astype(np.uint8)).view(np.int32)
    return {
        f"{module}.weight_packed": torch.from_numpy(words),
        f"{module}.weight_scale": torch.from_numpy(scales),
        f"{module}.weight_shape": torch.tensor(trits.shape),
    }


def mlx_affine(module: str, trits: np.ndarray, scales: np.ndarray) -> dict[str, torch.Tensor]:
    """A weight ``[out, in]`` as MLX stores it: value = scale * code + bias, with code = trit + 1."""
    return {
        f"{module}.weight": torch.from_numpy(words_of((trits + 1).astype(np.uint8))),
        f"{module}.scales": torch.from_numpy(scales),
        f"{module}.biases": torch.from_numpy(-scales),
    }
