"""Two bits in 32-bit words: compressed-tensors' and MLX's forms, packed here from their descriptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.packings import Scales, keeps_float, packing_of
from bitexport.checkpoint.packings.words import codes_of_words
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.ternary import GroupedTernary, TernaryTensor
from tests.support.word_packers import (
    COMPRESSED_CONFIG,
    compressed_tensors,
    mlx_affine,
    words_of,
)


def checkpoint_of(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Checkpoint:
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def random_weight(out: int, columns: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(out * columns)
    trits = rng.integers(-1, 2, (out, columns)).astype(np.int8)
    return trits, rng.uniform(0.01, 0.5, (out, groups)).astype(np.float16)


def test_words_by_hand() -> None:
    # 0xE4 is 3, 2, 1, 0 from the highest bits; it is the lowest byte, so columns 0 to 3 are 0, 1, 2, 3
    words = np.array([[0x000000E4, 0x40000000]], dtype=np.uint32)
    assert codes_of_words(words, 32)[0, :5].tolist() == [0, 1, 2, 3, 0]
    assert codes_of_words(words, 32)[0, 31] == 1
    negative = np.array([[-1]], dtype=np.int32)
    assert codes_of_words(negative, 10).tolist() == [[3] * 10]


@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_words_round_trip(out: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 4, (out, columns)).astype(np.uint8)
    np.testing.assert_array_equal(codes_of_words(words_of(codes), columns), codes)


@pytest.mark.parametrize("groups", [0, 1, 2, 4])
def test_compressed_tensors(tmp_path: Path, groups: int) -> None:
    trits, scales = random_weight(6, 128, max(groups, 1))
    scales = scales[:1, :1].reshape(1) if groups == 0 else scales
    checkpoint = checkpoint_of(
        tmp_path, compressed_tensors("w", trits, scales), {"quantization_config": COMPRESSED_CONFIG}
    )
    packing = packing_of(checkpoint)
    packing.check(checkpoint, "w.weight")
    assert packing.stored_shape(checkpoint, "w.weight", (6, 128)) == (6, 8)
    weights = packing.unpack(checkpoint, "w.weight")
    exact = trits * np.repeat(
        np.broadcast_to(scales.astype(np.float32), (6, max(groups, 1))), 128 // max(groups, 1), axis=1
    )
    np.testing.assert_array_equal(weights.dequantize(), exact)
    group = {0: None, 1: 128, 2: 64, 4: 32}[groups]
    found = packing.scales(checkpoint, "w.weight")
    assert found == Scales(group, float(scales.min()), float(scales.max()))
    assert isinstance(weights, TernaryTensor if groups == 0 else GroupedTernary)


def test_compressed_tensors_with_columns_that_do_not_fill_a_word(tmp_path: Path) -> None:
    trits, scales = random_weight(3, 20, 1)
    checkpoint = checkpoint_of(
        tmp_path, compressed_tensors("w", trits, scales), {"quantization_config": COMPRESSED_CONFIG}
    )
    np.testing.assert_array_equal(packing_of(checkpoint).unpack(checkpoint, "w.weight").trits, trits)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({}, {"num_bits": 4}, "4 bits.*expected pack-quantized with 2 bits"),
        ({}, {"symmetric": False}, "symmetric False.*expected pack-quantized"),
        ({"w.weight_zero_point": torch.zeros(1, 2, dtype=torch.int32)}, {}, "'w.weight_zero_point' makes"),
        ({"w.weight_g_idx": torch.zeros(64, dtype=torch.int32)}, {}, "'w.weight_g_idx' makes"),
        ({"w.weight_packed": torch.zeros(4, 4, dtype=torch.int64)}, {}, "has dtype I64"),
        ({"w.weight_scale": torch.ones(4, 3)}, {}, r"'w.weight_scale' has shape \[4, 3\]"),
        ({"w.weight_shape": torch.tensor([4, 65])}, {}, r"'w.weight_shape' holds \[4, 65\]"),
    ],
)
def test_compressed_tensors_that_are_not_ternary(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], message: str
) -> None:
    trits, scales = random_weight(4, 64, 1)
    weights = COMPRESSED_CONFIG["config_groups"]["group_0"]["weights"] | config
    changed = COMPRESSED_CONFIG | {"config_groups": {"group_0": {"weights": weights}}}
    checkpoint = checkpoint_of(
        tmp_path, compressed_tensors("w", trits, scales) | tensors, {"quantization_config": changed}
    )
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        packing_of(checkpoint).check(checkpoint, "w.weight")


def test_a_fourth_value_of_compressed_tensors(tmp_path: Path) -> None:
    trits, scales = random_weight(4, 64, 1)
    trits[2, 5] = -2
    checkpoint = checkpoint_of(
        tmp_path, compressed_tensors("w", trits, scales), {"quantization_config": COMPRESSED_CONFIG}
    )
    with pytest.raises(UnsupportedError, match="holds -2 in row 2, column 5, so it is a 2-bit weight"):
        packing_of(checkpoint).unpack(checkpoint, "w.weight")


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_mlx_affine(tmp_path: Path, groups: int, key: str) -> None:
    trits, scales = random_weight(6, 128, groups)
    trits[3] = 0
    scales[3] = 0  # a row of zeros
    scales[4, 0] *= -1  # MLX's own quantizer also gives negative scales
    checkpoint = checkpoint_of(
        tmp_path, mlx_affine("w", trits, scales), {key: {"group_size": 128 // groups, "bits": 2}}
    )
    packing = packing_of(checkpoint)
    assert packing.name == "mlx-affine"
    packing.check(checkpoint, "w.weight")
    assert packing.stored_shape(checkpoint, "w.weight", (6, 128)) == (6, 8)
    exact = trits * np.repeat(scales.astype(np.float32), 128 // groups, axis=1)
    np.testing.assert_array_equal(packing.unpack(checkpoint, "w.weight").dequantize(), exact)
    assert packing.scales(checkpoint, "w.weight").group == 128 // groups
    assert packing.holds(checkpoint, "w.weight")
    assert not keeps_float(checkpoint, "w.weight")
    assert keeps_float(checkpoint, "norm.weight")


def test_mlx_weights_that_are_not_ternary(tmp_path: Path) -> None:
    trits, scales = random_weight(4, 64, 2)
    trits[1, 40] = 2
    config = {"quantization": {"group_size": 32, "bits": 2}}
    checkpoint = checkpoint_of(tmp_path, mlx_affine("w", trits, scales), config)
    packing_of(checkpoint).check(checkpoint, "w.weight")
    with pytest.raises(
        UnsupportedError, match="2-bit affine, not ternary: code 3 occurs in row 1, column 40"
    ):
        packing_of(checkpoint).unpack(checkpoint, "w.weight")
    tensors = mlx_affine("w", np.clip(trits, -1, 1), scales)
    tensors["w.biases"][2, 1] *= 1.5
    (tmp_path / "b").mkdir()
    checkpoint = checkpoint_of(tmp_path / "b", tensors, config)
    with pytest.raises(UnsupportedError, match="2-bit affine, not ternary: row 2, group 1 has scale"):
        packing_of(checkpoint).scales(checkpoint, "w.weight")
    (tmp_path / "c").mkdir()
    checkpoint = checkpoint_of(tmp_path / "c", tensors, {"quantization": {"group_size": 32, "bits": 4}})
    with pytest.raises(UnsupportedError, match=r"quantization has 4 bits.*not ternary"):
        packing_of(checkpoint)
