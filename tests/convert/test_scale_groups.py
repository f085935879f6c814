"""Ternary weights with a scale per row or group of columns convert to the smallest type that holds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitexport.checkpoint import open_checkpoint
from bitexport.convert import convert
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.gguf.reader import read_gguf
from bitexport.health.scan import scan_checkpoint, scan_gguf
from tests.support.damaged_checkpoints import edited, resaved
from tests.support.gguf_files import tensors_of, values
from tests.support.scale_groups import ONLINE, with_groups
from tests.support.tiny_models import Shape

Checkpoints = Callable[..., Path]

SHAPE = Shape(hidden=512, ffn=1024, layers=1, heads=4, kv_heads=1, vocab=416)
UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
TARGETS = {UP: "blk.0.ffn_up.weight", DOWN: "blk.0.ffn_down.weight"}


def expect_values(source: Path, file: Path, rtol: float = 2**-11) -> None:
    """The file's values are the checkpoint's, but for the rounding of a scale to float16."""
    tensors = load_file(source / "model.safetensors")
    opened = read_gguf(file)
    for name, target in TARGETS.items():
        np.testing.assert_allclose(values(opened, target), tensors[name].float().numpy(), rtol=rtol, atol=0)


@pytest.mark.parametrize("config", [None, ONLINE])
@pytest.mark.parametrize(
    ("size", "kind"), [(0, "tq1_0"), (256, "tq1_0"), (128, "q2_0"), (64, "q2_0"), (32, "f16")]
)
def test_groups_convert(
    size: int, kind: str, config: dict[str, str] | None, tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    source = with_groups(checkpoint_of("master", shape=SHAPE), tmp_path / "c", size, config)
    report = convert(source, tmp_path / "x.gguf", embed_type="f16", strict=True)
    expect_values(source, tmp_path / "x.gguf")
    per, unit = (f"per group of {size} columns", "groups") if size else ("per row", "rows")
    assert report.type_reason == (
        f"--type auto: {kind} for 7 tensors with a scale {per}, recognised from the values: 100% of the "
        f"{unit} fit"
    )
    file = read_gguf(tmp_path / "x.gguf")
    assert file.metadata["bitexport.ternary_type"] == kind
    findings = scan_gguf(file) + scan_checkpoint(open_checkpoint(source))
    assert {finding.level for finding in findings} <= {"info"}


@pytest.mark.parametrize("size", [0, 64])
def test_scales_move_with_their_rows(size: int, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    """The rows of Q and K are interleaved for llama's RoPE: [heads, 2, half, in] -> [heads, half, 2, in]."""
    shape = Shape(hidden=256, ffn=256, layers=1, heads=4, kv_heads=2, vocab=416)
    source = with_groups(checkpoint_of("master", shape=shape, architecture="llama"), tmp_path / "c", size)
    convert(source, tmp_path / "x.gguf", embed_type="f16")
    saved = load_file(source / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].float().numpy()
    expected = saved.reshape(4, 2, 32, 256).transpose(0, 2, 1, 3).reshape(256, 256)
    found = values(read_gguf(tmp_path / "x.gguf"), "blk.0.attn_q.weight")
    np.testing.assert_allclose(found, expected, rtol=2**-11, atol=0)


def test_every_tensor_decides_for_itself(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    """One tensor has groups of 64, the others one scale; both are in one file."""
    source = checkpoint_of("pre-dequantized", shape=SHAPE)
    grouped = load_file(with_groups(source, tmp_path / "g", 64) / "model.safetensors")[UP].float()
    folder = resaved(source, tmp_path / "c", lambda tensors: tensors.update({UP: grouped}))
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert report.type_reason == (
        "--type auto: i2_s for 6 tensors with one scale, recognised from the values: 100% of the tensors "
        "fit; q2_0 for 1 tensor with a scale per group of 64 columns, recognised from the values: 100% of "
        "the groups fit"
    )
    assert read_gguf(tmp_path / "x.gguf").metadata["bitexport.ternary_type"] == "i2_s"
    expect_values(folder, tmp_path / "x.gguf")


def test_an_explicit_type_that_lacks_the_groups(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = with_groups(checkpoint_of("master", shape=SHAPE), tmp_path / "c", 64)
    for kind in ("i2_s", "tq2_0", "tq1_0"):
        with pytest.raises(UnsupportedError, match=r"per group of 64 columns.*--type auto or q2_0 or f16"):
            convert(source, tmp_path / "x.gguf", type=kind, embed_type="f16")
    assert not (tmp_path / "x.gguf").exists()
    for kind in ("auto", "q2_0", "f16"):
        convert(source, tmp_path / "x.gguf", type=kind, embed_type="f16", force=True)
        expect_values(source, tmp_path / "x.gguf")


@pytest.mark.parametrize("config", [None, ONLINE])
def test_a_group_that_does_not_fit(
    config: dict[str, str] | None, tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    source = with_groups(checkpoint_of("master", shape=SHAPE), tmp_path / "c", 128, config)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][3, 200] = 0.75

    damaged = resaved(source, tmp_path / "d", change)
    why = rf"'{UP}' .*per group of 128 columns: 99\.9\d*% .*row 3, columns 192 to 223 contain .* 0.75"
    for kind in ("auto", "f16"):
        with pytest.raises(CheckpointError, match=why):
            convert(damaged, tmp_path / "x.gguf", type=kind, embed_type="f16")
    (finding,) = [f for f in scan_checkpoint(open_checkpoint(damaged)) if f.level == "warning"]
    assert finding.name == "unreadable"
    assert "per group of 128 columns" in finding.message


@pytest.mark.parametrize("config", [None, ONLINE])
def test_groups_that_no_type_has_convert_as_floats(
    config: dict[str, str] | None, tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    """A scale per column: the advice is followed step by step, and keeps the values."""
    source = with_groups(checkpoint_of("master", shape=SHAPE), tmp_path / "c", 0, config)

    def scale_columns(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith("_proj.weight"):
                signs = tensors[name].float().sign()
                tensors[name] = (signs * torch.linspace(0.01, 0.05, signs.shape[1])).bfloat16()

    folder = resaved(source, tmp_path / "d", scale_columns)
    keep = "convert with --float"
    if config:
        keep = f"remove quantization_config from config.json and {keep}"
    with pytest.raises(UnsupportedError, match=f"its values would change; {keep}"):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    plain = edited(folder, tmp_path / "e", lambda c: c.pop("quantization_config", None))
    convert(plain, tmp_path / "x.gguf", embed_type="f16", all_float=True)
    expect_values(folder, tmp_path / "x.gguf")


# with 1e-5 they become float16's subnormal numbers, which round by tens of percent
@pytest.mark.parametrize("factor", [1e-9, 1e-5, 1e8])
def test_scales_that_float16_lacks(factor: float, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = with_groups(checkpoint_of("master", shape=SHAPE), tmp_path / "c", 128, dtype=torch.float32)
    folder = resaved(source, tmp_path / "d", lambda tensors: tensors[UP][5, :128].mul_(factor))
    for kind in ("q2_0", "f16"):
        with pytest.raises(UnsupportedError, match=rf"'{UP}' has scales from .*float16.*use --type auto"):
            convert(folder, tmp_path / "x.gguf", type=kind, embed_type="f16")
    with pytest.raises(UnsupportedError, match=rf"'{UP}' has a scale per group.*use --type auto$"):
        convert(
            resaved(folder, tmp_path / "e", lambda tensors: only(tensors, UP)),
            tmp_path / "x.gguf",
            type="i2_s",
            embed_type="f16",
        )
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert "f32 for 1 tensor with" in report.type_reason
    assert tensors_of(tmp_path / "x.gguf")[TARGETS[UP]][0] == "f32"
    expect_values(folder, tmp_path / "x.gguf")


def test_ternary_embeddings_with_scales_that_float16_lacks(
    tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    name = "model.embed_tokens.weight"
    folder = resaved(
        checkpoint_of("master", shape=SHAPE),
        tmp_path / "d",
        lambda tensors: tensors.update({name: tensors[name].float().sign() * 3e-7}),
    )
    convert(folder, tmp_path / "x.gguf")
    assert tensors_of(tmp_path / "x.gguf")["token_embd.weight"][0] == "f32"
    found = values(read_gguf(tmp_path / "x.gguf"), "token_embd.weight")
    np.testing.assert_array_equal(found, load_file(folder / "model.safetensors")[name])


def only(tensors: dict[str, torch.Tensor], kept: str) -> None:
    """Give all linear layers but one a single scale."""
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight") and name != kept:
            tensors[name] = tensor.sign() * 0.5


@pytest.mark.parametrize("size", [0, 128, 64, 32])
def test_a_gguf_file_keeps_its_scales(size: int, tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = with_groups(checkpoint_of("master", shape=SHAPE), tmp_path / "c", size)
    convert(source, tmp_path / "f16.gguf", type="f16", embed_type="f16")
    convert(source, tmp_path / "auto.gguf", embed_type="f16")
    convert(tmp_path / "f16.gguf", tmp_path / "x.gguf")
    assert tensors_of(tmp_path / "auto.gguf") == tensors_of(tmp_path / "x.gguf")
    convert(tmp_path / "x.gguf", tmp_path / "y.gguf")
    assert tensors_of(tmp_path / "y.gguf") == tensors_of(tmp_path / "x.gguf")


def test_a_gguf_file_with_one_scale_becomes_i2_s(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = checkpoint_of("packed-multiply", shape=SHAPE)
    convert(source, tmp_path / "tq2.gguf", type="tq2_0", embed_type="f16")
    report = convert(tmp_path / "tq2.gguf", tmp_path / "x.gguf")
    assert report.type_reason == "--type auto: i2_s for 7 tensors with one scale"


def test_the_json_report(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = with_groups(checkpoint_of("master", shape=SHAPE), tmp_path / "c", 128)
    report = convert(source, tmp_path / "x.gguf", embed_type="f16", dry_run=True)
    assert json.loads(json.dumps(report.to_json()))["scales"] == [
        {"type": "q2_0", "per": "group", "columns": 128, "tensors": 7, "recognised": True, "share": 1.0}
    ]
