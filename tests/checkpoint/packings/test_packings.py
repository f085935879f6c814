"""The packings: bytes written by hand, transformers' own functions, and the choice by quantization_config."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.packings import PACKINGS, keeps_float, packing_of
from bitexport.checkpoint.packings.float_ternary import CHUNK
from bitexport.checkpoint.packings.master import absmean
from bitexport.checkpoint.packings.scale_groups import find_scale_groups
from bitexport.checkpoint.packings.two_bit import unpack_trits
from bitexport.errors import CheckpointError, UnsupportedError
from tests.support.tiny_models import pack_two_bit, stable_master


def folder_of(folder: Path, tensors: dict[str, torch.Tensor], **quantization: Any) -> Checkpoint:
    save_file(tensors, str(folder / "model.safetensors"))
    config = {"quantization_config": {"quant_method": "bitnet", **quantization}}
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def config_of(**quantization: Any) -> Checkpoint:
    config = {"quantization_config": {"quant_method": "bitnet", **quantization}}
    return Checkpoint(Path("somewhere"), config, MappingProxyType({}))


def test_two_bit_by_hand() -> None:
    # out = 4: byte row 0 holds rows 0..3 of the weight, lowest bits first: codes 0, 1, 2, 0
    packed = np.array([[0b00_10_01_00, 0b10_10_10_10]], dtype=np.uint8)
    np.testing.assert_array_equal(unpack_trits(packed, "w"), [[-1, 1], [0, 1], [1, 1], [-1, 1]])
    # out = 8: bits 1-0 are rows 0 and 1, bits 3-2 rows 2 and 3, ...
    packed = np.array([[0b01_01_01_00], [0b10_01_01_01]], dtype=np.uint8)
    np.testing.assert_array_equal(unpack_trits(packed, "w").ravel(), [-1, 0, 0, 0, 0, 0, 0, 1])


@settings(deadline=None)
@given(trits=hnp.arrays(np.int8, st.sampled_from([(4, 1), (8, 3), (12, 5)]), elements=st.integers(-1, 1)))
def test_two_bit_agrees_with_transformers_and_the_description(trits: np.ndarray) -> None:
    from transformers.integrations.bitnet import pack_weights

    packed = pack_weights(torch.from_numpy(trits).float()).numpy()
    np.testing.assert_array_equal(packed, pack_two_bit(trits))
    np.testing.assert_array_equal(unpack_trits(packed, "w"), trits)


@pytest.mark.parametrize("k", range(4))
def test_a_value_of_three_is_an_error_that_names_the_tensor(k: int) -> None:
    packed = np.full((2, 3), 0b01010101, dtype=np.uint8)
    packed[1, 2] |= 3 << 2 * k
    with pytest.raises(CheckpointError, match=r"'some\.weight' holds a two-bit value of 3 \(byte 1, 2"):
        unpack_trits(packed, "some.weight")


def test_absmean_by_hand() -> None:
    weights = np.array([[0.5, -1.5], [1.0, -3.0], [0.75, -0.75], [0.0, 4.5]], dtype=np.float32)
    found = absmean(weights, "w")
    assert found.scale == np.float32(12 / 8)
    # half of m goes to even, that is to zero: 0.75 / 1.5
    np.testing.assert_array_equal(found.trits, [[0, -1], [1, -1], [0, 0], [0, 1]])
    assert found.trits.dtype == np.int8


def test_absmean_of_zeros_is_the_lower_bound_of_transformers() -> None:
    found = absmean(np.zeros((4, 4), dtype=np.float32), "w")
    assert found.scale == np.float32(1e-5)
    assert not found.trits.any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-8, 1e-4, 0.02, 1.0, 300.0]))
def test_absmean_gives_the_values_of_transformers(seed: int, scale: float) -> None:
    from transformers.integrations.bitnet import WeightQuant

    weights = np.random.default_rng(seed).normal(0, scale, (48, 96)).astype(np.float32)
    # the function under torch.compile, run as plain Python
    inner = getattr(WeightQuant.forward, "_torchdynamo_orig_callable", WeightQuant.forward)
    expected = inner(None, torch.from_numpy(weights)).numpy()
    found = absmean(weights, "w")
    np.testing.assert_array_equal(found.trits, np.sign(expected))
    # the difference of m and 1 / (1 / m), and of two orders of summation
    np.testing.assert_allclose(found.dequantize(), expected, rtol=4 * np.finfo(np.float32).eps)


def test_absmean_over_more_than_a_chunk() -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, (1000, 600)).astype(np.float32)
    found = absmean(weights, "w")
    mean = np.float32(np.abs(weights.astype(np.float64)).mean())
    assert found.scale == mean
    np.testing.assert_array_equal(found.trits, np.clip(np.rint(weights * (np.float32(1) / mean)), -1, 1))


def ternary_floats(scale: float) -> np.ndarray:
    """Float32 trits times ``scale`` over more than two chunks, with a first row of zeros."""
    trits = np.random.default_rng(7).integers(-1, 2, size=(3, CHUNK // 2 + 5)).astype(np.float32)
    trits[0] = 0
    return trits * np.float32(scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("online", [True, False])
def test_weights_that_are_already_ternary_keep_their_scale(
    tmp_path: Path, online: bool, dtype: torch.dtype
) -> None:
    """Absmean would give another one: the scale times the nonzero fraction."""
    weights = ternary_floats(0.0371)
    config = {"linear_class": "autobitlinear", "quantization_mode": "online"}
    checkpoint = folder_of(tmp_path, {"w.weight": torch.from_numpy(weights).to(dtype)}, **config)
    if not online:
        checkpoint = Checkpoint(checkpoint.path, {}, checkpoint.tensors)
    packing = packing_of(checkpoint)
    assert packing.name == ("master" if online else "pre-dequantized")
    packing.check(checkpoint, "w.weight")
    found = packing.unpack(checkpoint, "w.weight")
    assert found.scale == np.float32(torch.tensor(0.0371).to(dtype).item())
    assert found.dequantized
    np.testing.assert_array_equal(found.trits, np.sign(weights))
    assert absmean(weights, "w").scale == pytest.approx(0.0371 * np.count_nonzero(weights) / weights.size)


def test_a_single_other_value_makes_weights_not_ternary() -> None:
    weights = ternary_floats(0.0371)
    found = find_scale_groups(weights)
    assert found is not None
    assert (found.group, np.float32(found.high)) == (None, np.float32(0.0371))
    weights[-1, -1] = np.nextafter(np.float32(0.0371), np.float32(1))
    assert find_scale_groups(weights) is None
    zeros = find_scale_groups(np.zeros((2, 8), dtype=np.float32))
    assert zeros is not None
    assert (zeros.group, zeros.high) == (None, 0)


def test_float_weights_without_a_quantization_config(tmp_path: Path) -> None:
    save_file({"w.weight": torch.randn(8, 16)}, str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    for step in (packing_of(checkpoint).check, packing_of(checkpoint).unpack):
        with pytest.raises(
            CheckpointError, match=r"no quantization_config.*'w\.weight' contains values other than"
        ):
            step(checkpoint, "w.weight")


def test_packed_weights_without_a_quantization_config(tmp_path: Path) -> None:
    save_file({"w.weight": torch.zeros(1, 4, dtype=torch.uint8)}, str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"'w\.weight' has dtype U8.*linear_class"):
        packing_of(checkpoint).check(checkpoint, "w.weight")


def test_1bitllm_is_ternary_by_definition() -> None:
    config = {"architectures": ["BitnetForCausalLM"]}
    assert packing_of(Checkpoint(Path("x"), config, MappingProxyType({}))).name == "master"


def test_only_autobitlinear_offline_multiplies_the_bias(tmp_path: Path) -> None:
    tensors = {
        "w.weight": torch.full((1, 4), 0b01010101, dtype=torch.uint8),
        "w.weight_scale": torch.tensor([0.25]),
    }
    checkpoint = folder_of(tmp_path, tensors)
    for key, packing in PACKINGS.items():
        expected = 0.25 if key == ("autobitlinear", "offline") else 1.0
        assert packing.bias_factor(checkpoint, "w.weight") == expected


def test_each_packing_gives_the_same_tensor(tmp_path: Path) -> None:
    weights, trits, mean = stable_master(np.random.default_rng(0).normal(0, 0.02, (8, 64)).astype(np.float32))
    packed = torch.from_numpy(pack_two_bit(trits))
    cases = {
        ("master", "autobitlinear", "online"): {"w.weight": torch.from_numpy(weights)},
        ("packed-multiply", "autobitlinear", "offline"): {
            "w.weight": packed,
            "w.weight_scale": torch.tensor([mean]),
        },
        ("packed-divide", "bitlinear", "offline"): {
            "w.weight": packed,
            "w.weight_scale": torch.tensor([np.float32(1) / mean]),
        },
    }
    for (name, linear, mode), tensors in cases.items():
        (folder := tmp_path / name).mkdir()
        checkpoint = folder_of(folder, tensors, linear_class=linear, quantization_mode=mode)
        packing = packing_of(checkpoint)
        assert packing.name == name
        assert set(tensors) == {"w.weight", *packing.partners("w.weight")}
        packing.check(checkpoint, "w.weight")
        found = packing.unpack(checkpoint, "w.weight")
        np.testing.assert_array_equal(found.trits, trits)
        assert found.scale.tobytes() == mean.tobytes()


def test_a_bfloat16_scale_without_dimensions(tmp_path: Path) -> None:
    scale = torch.tensor(1.21875, dtype=torch.bfloat16)
    tensors = {"w.weight": torch.full((1, 4), 0b01010101, dtype=torch.uint8), "w.weight_scale": scale}
    checkpoint = folder_of(tmp_path, tensors)
    assert packing_of(checkpoint).unpack(checkpoint, "w.weight").scale == np.float32(1) / np.float32(1.21875)


@pytest.mark.parametrize("linear", ["autobitlinear", "bitlinear"])
@pytest.mark.parametrize("scale", [0.0, -0.5, math.nan, math.inf])
def test_an_invalid_scale_names_its_tensor(tmp_path: Path, linear: str, scale: float) -> None:
    tensors = {
        "w.weight": torch.full((1, 4), 0b01010101, dtype=torch.uint8),
        "w.weight_scale": torch.tensor([scale]),
    }
    checkpoint = folder_of(tmp_path, tensors, linear_class=linear)
    with pytest.raises(CheckpointError, match=r"'w\.weight_scale'"):
        packing_of(checkpoint).unpack(checkpoint, "w.weight")


def test_a_scale_with_an_infinite_reciprocal(tmp_path: Path) -> None:
    tensors = {
        "w.weight": torch.full((1, 4), 0b01010101, dtype=torch.uint8),
        "w.weight_scale": torch.tensor([1e-45]),
    }
    checkpoint = folder_of(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"'w\.weight_scale' gives a scale of inf"):
        packing_of(checkpoint).unpack(checkpoint, "w.weight")


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"w.weight": torch.zeros(1, 4, dtype=torch.uint8)}, CheckpointError, "'w.weight_scale' is missing"),
        ({"w.weight": torch.zeros(4, 4)}, CheckpointError, "is F32 and has no weight_scale.*expected U8"),
        (
            {"w.weight": torch.zeros(1, 4, dtype=torch.uint8), "w.weight_scale": torch.ones(3)},
            CheckpointError,
            r"shape \[3\], and its weight is 4 x 4; expected one scale",
        ),
        (
            {
                "w.weight": torch.zeros(1, 4, dtype=torch.uint8),
                "w.weight_scale": torch.ones(1, dtype=torch.int64),
            },
            CheckpointError,
            "'w.weight_scale' has dtype I64",
        ),
    ],
)
def test_invalid_packed_tensors(
    tmp_path: Path, tensors: dict[str, torch.Tensor], error: type[Exception], message: str
) -> None:
    checkpoint = folder_of(tmp_path, tensors)
    with pytest.raises(error, match=message):
        packing_of(checkpoint).check(checkpoint, "w.weight")


def test_master_weights_with_dtype_uint8(tmp_path: Path) -> None:
    tensors = {"w.weight": torch.zeros(1, 4, dtype=torch.uint8)}
    checkpoint = folder_of(tmp_path, tensors, linear_class="autobitlinear", quantization_mode="online")
    with pytest.raises(CheckpointError, match=r"has dtype U8.*says online"):
        packing_of(checkpoint).check(checkpoint, "w.weight")


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ({}, "packed-divide"),
        ({"linear_class": "bitlinear"}, "packed-divide"),
        ({"linear_class": "autobitlinear"}, "packed-multiply"),
        ({"linear_class": "autobitlinear", "quantization_mode": "offline"}, "packed-multiply"),
        ({"linear_class": "autobitlinear", "quantization_mode": "online"}, "master"),
    ],
)
def test_the_packing_follows_from_the_config(quantization: dict[str, str], name: str) -> None:
    assert packing_of(config_of(**quantization)).name == name


def test_configs_without_a_packing() -> None:
    with pytest.raises(CheckpointError, match="quantization_config is 'bitnet'; expected an object"):
        packing_of(Checkpoint(Path("x"), {"quantization_config": "bitnet"}, {}))
    unknown: list[dict[str, Any]] = [{"linear_class": "mybitlinear"}, {"quantization_mode": "sideways"}]
    unknown += [{"linear_class": ["x"]}, {"quantization_mode": {}}, {"linear_class": None}]
    for quantization in unknown:
        with pytest.raises(UnsupportedError, match="unknown packing"):
            packing_of(config_of(**quantization))
    with pytest.raises(UnsupportedError, match="'gptq'"):
        packing_of(Checkpoint(Path("x"), {"quantization_config": {"quant_method": "gptq"}}, {}))


@pytest.mark.parametrize(
    ("patterns", "name", "kept"),
    [
        (None, "model.layers.1.mlp.up_proj", False),
        ([], "model.layers.1.mlp.up_proj", False),
        (["model.layers.1"], "model.layers.1.mlp.up_proj", True),
        (["model.layers.1"], "model.layers.11.mlp.up_proj", False),
        (["up_proj"], "model.layers.1.mlp.up_proj", True),
        (["model.layers.*"], "model.layers.11.mlp.up_proj", True),
        (["model.layers.0.mlp"], "model.layers.0.mlp.up_proj", True),
        (["lm_head"], "model.layers.0.mlp.up_proj", False),
        ([r"model\.layers\.[02]\..*"], "model.layers.2.self_attn.q_proj", True),
    ],
)
def test_modules_to_not_convert_as_transformers_matches_them(
    patterns: list[str] | None, name: str, kept: bool
) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    assert should_convert_module(name, patterns) is not kept
    assert keeps_float(config_of(modules_to_not_convert=patterns), f"{name}.weight") is kept


@pytest.mark.parametrize("patterns", [["("], [3], 7, "q_proj", {"q_proj": True}, [""], ["lm_head", ""]])
def test_invalid_patterns(patterns: Any) -> None:
    with pytest.raises(CheckpointError, match="modules_to_not_convert"):
        keeps_float(config_of(modules_to_not_convert=patterns), "a.weight")
