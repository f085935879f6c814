"""Packed checkpoints of other tools, or saved again by other tools, convert to the same values."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitexport.checkpoint import open_checkpoint
from bitexport.convert import convert
from bitexport.errors import CheckpointError
from bitexport.gguf.reader import read_gguf
from bitexport.health.scan import scan_checkpoint
from bitexport.inspect import inspect
from tests.support.damaged_checkpoints import edited, resaved
from tests.support.gguf_files import tensors_of, values
from tests.support.scale_groups import with_groups
from tests.support.tiny_models import Shape, pack_two_bit
from tests.support.word_packers import COMPRESSED_CONFIG, compressed_tensors, mlx_affine

Checkpoints = Callable[..., Path]

SHAPE = Shape(hidden=256, ffn=512, layers=1, heads=4, kv_heads=1, vocab=416)
UP = "model.layers.0.mlp.up_proj.weight"
#: Q and K are permuted in the llama graph, rows and scales alike.
QUERY = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def trits_and_scales(weight: torch.Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Trits int8 ``[out, in]`` and scales float16 ``[out, in / size]`` of grouped floats."""
    floats = weight.float().numpy()
    scales = np.abs(floats).reshape(len(floats), -1, size).max(axis=2).astype(np.float16)
    return np.sign(floats).astype(np.int8), scales


def packed_by(
    store: Callable[[str, np.ndarray, np.ndarray], dict[str, torch.Tensor]], size: int, *also: str
) -> Callable[[dict[str, torch.Tensor]], None]:
    """A change that stores the linear layers, and the tensors ``also``, in another form."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if name.endswith("_proj.weight") or name in also:
                weight = tensors.pop(name)
                columns = weight.shape[1]
                tensors.update(
                    store(name.removesuffix(".weight"), *trits_and_scales(weight, size or columns))
                )

    return change


def two_bit(module: str, trits: np.ndarray, scales: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        f"{module}.weight": torch.from_numpy(pack_two_bit(trits)),
        f"{module}.weight_scale": torch.from_numpy(scales),
    }


def expect_same(floats: Path, source: Path, file: Path, folder: Path, *, embed: str = "f16") -> None:
    """Both checkpoints convert to the same tensors, and the second to ``file``."""
    convert(floats, folder / "expected.gguf", embed_type=embed)
    convert(source, file, embed_type=embed, strict=True)
    assert tensors_of(file) == tensors_of(folder / "expected.gguf")


@pytest.mark.parametrize(
    ("linear", "size", "architecture"),
    [
        ("autobitlinear", 0, "llama"),
        ("autobitlinear", 128, "llama"),
        ("autobitlinear", 32, "bitnet"),
        ("bitlinear", 0, "bitnet"),
        ("bitlinear", 128, "bitnet"),
    ],
)
def test_scales_per_row_and_group_beside_packed_weights(
    linear: str, size: int, architecture: str, tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    master = checkpoint_of("master", shape=SHAPE, architecture=architecture)
    floats = with_groups(master, tmp_path / "floats", size, dtype=torch.float16)
    packed = resaved(floats, tmp_path / "p", packed_by(two_bit, size))
    if linear == "bitlinear":  # with powers of two, the reciprocal is exact

        def powers(tensors: dict[str, torch.Tensor]) -> None:
            for name in tensors:
                if name.endswith("_proj.weight"):
                    signs = tensors[name].float().sign()
                    groups = signs.reshape(len(signs), -1, size or signs.shape[1])
                    exponents = torch.arange(groups.shape[0] * groups.shape[1]) % 5 - 6
                    groups *= torch.pow(2.0, exponents).reshape(groups.shape[:2])[:, :, None]
                    tensors[name] = signs.half()

        floats = resaved(floats, tmp_path / "powers", powers)

        def divide(tensors: dict[str, torch.Tensor]) -> None:
            packed_by(two_bit, size)(tensors)
            for name in tensors:
                if name.endswith("_scale"):
                    tensors[name] = 1 / tensors[name].float()
                    assert tensors[name].isfinite().all()

        packed = resaved(floats, tmp_path / "divide", divide)
    config = {"quant_method": "bitnet", "linear_class": linear, "quantization_mode": "offline"}
    source = edited(packed, tmp_path / "c", lambda c: c.update(quantization_config=config))
    expect_same(floats, source, tmp_path / "x.gguf", tmp_path)
    one_dimension = resaved(
        source,
        tmp_path / "flat",
        lambda tensors: [
            tensors.update({name: tensor.squeeze(1)})
            for name, tensor in list(tensors.items())
            if name.endswith("_scale") and tensor.shape[1] == 1
        ],
    )
    convert(one_dimension, tmp_path / "y.gguf", embed_type="f16")
    assert tensors_of(tmp_path / "y.gguf") == tensors_of(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("packing", "dtype"),
    [
        ("packed-multiply", torch.bfloat16),
        ("packed-multiply", torch.float64),
        ("packed-divide", torch.float32),
        ("packed-divide", torch.int8),
    ],
)
def test_trits_that_were_unpacked_when_saved_again(
    packing: str, dtype: torch.dtype, tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    """transformers unpacks the trits on loading and saves them as floats."""
    source = checkpoint_of(packing, shape=SHAPE)

    def unpack(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in list(tensors.items()):
            if name.endswith("_proj.weight"):
                codes = torch.cat([(tensor >> (2 * k)) & 3 for k in range(4)])
                tensors[name] = (codes.to(torch.int8) - 1).to(dtype)

    folder = resaved(source, tmp_path / "c", unpack)
    convert(folder, tmp_path / "x.gguf", embed_type="f16", strict=True)
    convert(source, tmp_path / "y.gguf", embed_type="f16")
    assert tensors_of(tmp_path / "x.gguf") == tensors_of(tmp_path / "y.gguf")
    assert inspect(folder).problems == []


def test_float_tensors_of_double_precision(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = checkpoint_of("master", shape=SHAPE)

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].double()

    convert(resaved(source, tmp_path / "c", widen), tmp_path / "x.gguf", embed_type="f16")
    convert(source, tmp_path / "y.gguf", embed_type="f16")
    assert tensors_of(tmp_path / "x.gguf") == tensors_of(tmp_path / "y.gguf")


def test_values_beside_a_scale_are_not_trits(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    """Dequantized floats that kept their weight_scale: following the advice gives the right model."""
    source = checkpoint_of("packed-multiply", shape=SHAPE)
    right = checkpoint_of("pre-dequantized", shape=SHAPE)
    floats = load_file(right / "model.safetensors")

    def dequantize(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: floats[name] for name in floats if name.endswith("_proj.weight")})

    folder = resaved(source, tmp_path / "c", dequantize)
    why = "expected -1, 0 or 1: .*remove the weight_scale tensors and quantization_config"
    with pytest.raises(CheckpointError, match=why):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")

    def without(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_scale")]:
            del tensors[name]

    plain = edited(
        resaved(folder, tmp_path / "d", without), tmp_path / "e", lambda c: c.pop("quantization_config")
    )
    expect_same(right, plain, tmp_path / "x.gguf", tmp_path)


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_packed_head_stays_ternary(unpacked: bool, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = checkpoint_of("packed-multiply", shape=SHAPE, architecture="llama", tied=False)
    rng = np.random.default_rng(1)
    trits = rng.integers(-1, 2, (SHAPE.vocab, SHAPE.hidden)).astype(np.int8)

    def pack_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors[HEAD] = torch.from_numpy(trits if unpacked else pack_two_bit(trits))
        tensors["lm_head.weight_scale"] = torch.tensor([0.0371])

    folder = resaved(source, tmp_path / "c", pack_head)
    report = convert(folder, tmp_path / "x.gguf", strict=True)
    assert (report.ternary_tensors, report.warnings) == (8, [])
    assert tensors_of(tmp_path / "x.gguf")["output.weight"][0] == "i2_s"
    np.testing.assert_array_equal(
        values(read_gguf(tmp_path / "x.gguf"), "output.weight"), trits * np.float32(0.0371)
    )
    assert scan_checkpoint(open_checkpoint(folder)) == scan_checkpoint(open_checkpoint(source))
    convert(tmp_path / "x.gguf", tmp_path / "q2.gguf", type="q2_0")
    assert tensors_of(tmp_path / "q2.gguf")["output.weight"][0] == "q2_0"
    convert(folder, tmp_path / "direct.gguf", type="q2_0")
    assert tensors_of(tmp_path / "direct.gguf") == tensors_of(tmp_path / "q2.gguf")


def test_a_packed_head_runs(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    """In our libllama, against the same head in float16, whose activations are not quantized."""
    from bitexport.runtime.session import Session

    source = checkpoint_of("packed-multiply", shape=SHAPE, architecture="llama", tied=False)
    trits = np.random.default_rng(1).integers(-1, 2, (SHAPE.vocab, SHAPE.hidden)).astype(np.int8)

    def pack_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors[HEAD] = torch.from_numpy(pack_two_bit(trits))
        tensors["lm_head.weight_scale"] = torch.tensor([0.5])

    convert(resaved(source, tmp_path / "c", pack_head), tmp_path / "x.gguf", embed_type="f16")
    convert(
        resaved(
            source, tmp_path / "d", lambda t: t.update({HEAD: torch.from_numpy(trits * np.float32(0.5))})
        ),
        tmp_path / "y.gguf",
        embed_type="f16",
    )
    logits = []
    for name in ("x", "y"):
        with Session(tmp_path / f"{name}.gguf") as session:
            logits.append(session.logits([0, 5, 9, 17, 40]))
    packed, plain = (found / np.linalg.norm(found) for found in logits)
    assert float((packed * plain).sum()) > 0.999


@pytest.mark.parametrize("size", [0, 128])
def test_compressed_tensors(size: int, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    master = checkpoint_of("master", shape=SHAPE, architecture="llama")
    floats = with_groups(master, tmp_path / "floats", size, dtype=torch.float16)
    packed = resaved(floats, tmp_path / "p", packed_by(compressed_tensors, size))
    source = edited(packed, tmp_path / "c", lambda c: c.update(quantization_config=COMPRESSED_CONFIG))
    expect_same(floats, source, tmp_path / "x.gguf", tmp_path)
    assert inspect(source, health=True).problems == []


def test_a_layer_that_compressed_tensors_ignores_stays_float(
    tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    master = checkpoint_of("master", shape=SHAPE, architecture="llama")
    floats = with_groups(master, tmp_path / "floats", 128, dtype=torch.float16)
    kept = load_file(floats / "model.safetensors")[UP]

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        packed_by(compressed_tensors, 128)(tensors)
        for name in [name for name in tensors if name.startswith(UP)]:
            del tensors[name]
        tensors[UP] = kept

    packed = resaved(floats, tmp_path / "p", pack)
    source = edited(packed, tmp_path / "c", lambda c: c.update(quantization_config=COMPRESSED_CONFIG))
    report = convert(source, tmp_path / "x.gguf", embed_type="f16")
    assert report.ternary_tensors == 6
    np.testing.assert_array_equal(
        values(read_gguf(tmp_path / "x.gguf"), "blk.0.ffn_up.weight"), kept.float().numpy()
    )


@pytest.mark.parametrize("tied", [True, False])
def test_mlx(tied: bool, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    """As published for Ternary-Bonsai: the embedding and the head are stored in the same way."""
    master = checkpoint_of("master", shape=SHAPE, architecture="qwen3", tied=tied)
    floats = with_groups(master, tmp_path / "floats", 128, dtype=torch.float16)
    grouped = load_file(floats / "model.safetensors")

    def ternary(tensors: dict[str, torch.Tensor]) -> None:
        # 416 rows of 256 columns from the 512 x 256 of up_proj
        tensors[EMBEDDING] = grouped[UP][: SHAPE.vocab].clone()
        if not tied:
            tensors[HEAD] = grouped[UP][-SHAPE.vocab :].clone()

    floats = resaved(floats, tmp_path / "ternary", ternary)
    packed = resaved(floats, tmp_path / "p", packed_by(mlx_affine, 128, EMBEDDING, HEAD))
    source = edited(packed, tmp_path / "c", lambda c: c.update(quantization={"group_size": 128, "bits": 2}))
    # its config.json without the entry is an error that says what to copy
    why = r'dtype U32, as MLX.*"quantization", such as \{"group_size": 128, "bits": 2\}'
    with pytest.raises(CheckpointError, match=why):
        convert(packed, tmp_path / "x.gguf", embed_type="f16")
    report = convert(source, tmp_path / "x.gguf", embed_type="f16", strict=True)
    assert report.ternary_tensors == (7 if tied else 8)
    convert(floats, tmp_path / "y.gguf", embed_type="f16")
    found, expected = tensors_of(tmp_path / "x.gguf"), tensors_of(tmp_path / "y.gguf")
    if not tied:
        assert found["output.weight"][0] == "q2_0"
        np.testing.assert_array_equal(
            values(read_gguf(tmp_path / "x.gguf"), "output.weight"),
            values(read_gguf(tmp_path / "y.gguf"), "output.weight"),
        )
        del found["output.weight"], expected["output.weight"]
    assert found == expected
    assert inspect(source, health=True).problems == []


@pytest.mark.parametrize(
    ("size", "squeeze", "warning"),
    [
        (0, True, None),
        (0, False, "is multiplied by them, as transformers does for .out."),
        (128, False, "is added unchanged"),
    ],
)
def test_the_bias_of_a_layer_with_several_scales(
    size: int, squeeze: bool, warning: str | None, tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    """transformers multiplies the bias of an autobitlinear layer by weight_scale, if its shape is [out]."""
    name = "model.layers.0.self_attn.q_proj"
    master = checkpoint_of("master", shape=SHAPE, architecture="qwen2")
    floats = with_groups(master, tmp_path / "floats", size, dtype=torch.float16)

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        packed_by(two_bit, size)(tensors)
        for key in [key for key in tensors if key.endswith("_scale") and squeeze]:
            tensors[key] = tensors[key].squeeze(1)

    config = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    packed = resaved(floats, tmp_path / "p", pack)
    source = edited(packed, tmp_path / "c", lambda c: c.update(quantization_config=config))
    report = convert(source, tmp_path / "x.gguf", embed_type="f16")
    tensors = load_file(source / "model.safetensors")
    factor = 1 if size else tensors[f"{name}.weight_scale"].float().numpy().reshape(-1)
    np.testing.assert_array_equal(
        values(read_gguf(tmp_path / "x.gguf"), "blk.0.attn_q.bias"),
        tensors[f"{name}.bias"].numpy() * factor,
    )
    if warning is None:
        assert report.warnings == []
    else:
        assert re.search(rf"'{name}.bias' {warning}", report.warnings[0])
