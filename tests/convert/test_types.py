"""``convert`` and the types of GGUF tensors: what each can store, and what none can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.packings import packing_of
from bitexport.convert import convert
from bitexport.convert.choices import TERNARY_TYPES
from bitexport.errors import UnsupportedError
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import MAX_I2_S_ROW
from tests.support.damaged_checkpoints import edited, resaved
from tests.support.gguf_files import tensors_of, values
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import Shape

Checkpoints = Callable[..., Path]


@pytest.mark.parametrize(
    ("kind", "number"), [("i2_s", 40), ("f16", 1), ("tq1_0", 36), ("tq2_0", 37), ("q2_0", 41)]
)
def test_types_and_file_types(tmp_path: Path, checkpoint_of: Checkpoints, kind: str, number: int) -> None:
    report = convert(checkpoint_of(), tmp_path / "x.gguf", type=kind)
    file = read_gguf(tmp_path / "x.gguf")
    assert file.metadata["general.file_type"] == number
    assert {t.type.name for t in file.tensors if "attn_q" in t.name} == {kind}
    original = open_checkpoint(checkpoint_of())
    weights = packing_of(original).unpack(original, "model.layers.0.mlp.gate_proj.weight")
    found = values(file, "blk.0.ffn_gate.weight")
    np.testing.assert_array_equal(np.sign(found), weights.trits)
    (row,) = [row for row in report.types if row.zero_fraction is not None]
    assert np.abs(found).max() == pytest.approx(weights.scale, rel=row.scale_rounding or 1e-12)
    assert (row.scale_rounding == 0) is (kind == "i2_s")


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("f16", 0.0), ("q8_0", 1e-2), ("q6_k", 3e-2), ("q5_k", 6e-2), ("q4_k", 0.12)]
)
def test_embedding_types(tmp_path: Path, checkpoint_of: Checkpoints, kind: str, tolerance: float) -> None:
    source = checkpoint_of(tied=False)
    convert(source, tmp_path / "x.gguf", embed_type=kind)
    file = read_gguf(tmp_path / "x.gguf")
    saved = load_file(source / "model.safetensors")
    for name, original in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
    ):
        assert [t.type.name for t in file.tensors if t.name == name] == [kind]
        error = np.abs(values(file, name) - saved[original].numpy()).max()
        assert error <= tolerance * np.abs(saved[original].numpy()).max()


@pytest.mark.parametrize("kind", TERNARY_TYPES)
def test_the_same_bytes_at_every_thread_count(
    tmp_path: Path, checkpoint_of: Checkpoints, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    found = set()
    for threads in (1, 2, 7):
        monkeypatch.setattr("bitexport.runtime.ggml.processors", lambda threads=threads: threads)
        convert(checkpoint_of(), tmp_path / f"{threads}.gguf", type=kind)
        found.add((tmp_path / f"{threads}.gguf").read_bytes())
    assert len(found) == 1


def test_a_scale_that_float16_lacks_names_the_tensor(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight_scale"].fill_(1e-9)

    folder = resaved(checkpoint_of("packed-multiply"), tmp_path / "c", change)
    why = r"'model.layers.0.mlp.up_proj.weight' .*from 1e-09 .*--type auto"
    for kind in TERNARY_TYPES[1:]:
        with pytest.raises(UnsupportedError, match=why):
            convert(folder, tmp_path / "x.gguf", type=kind)
    convert(folder, tmp_path / "x.gguf")


def test_embeddings_are_the_same_in_pieces(
    tmp_path: Path, checkpoint_of: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(checkpoint_of(), tmp_path / "whole.gguf")
    monkeypatch.setattr("bitexport.gguf.dequantize.CHUNK_WEIGHTS", 256 * 7)
    convert(checkpoint_of(), tmp_path / "pieces.gguf")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_rows_of_576(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    shape = Shape(hidden=576, ffn=1536, layers=1, heads=9, kv_heads=3, vocab=416)
    source = checkpoint_of("packed-multiply", shape=shape)
    with pytest.raises(UnsupportedError, match=r"\[416, 576\] cannot be q6_k.*--embed-type q8_0 or f16"):
        convert(source, tmp_path / "x.gguf", embed_type="q6_k")
    with pytest.raises(UnsupportedError, match=r"cannot be tq2_0.*--type i2_s or q2_0 or f16"):
        convert(source, tmp_path / "x.gguf", embed_type="q8_0", type="tq2_0")
    report = convert(source, tmp_path / "x.gguf")
    assert report.embed_type == "q8_0"
    assert any("written as q8_0 instead of q6_k" in warning for warning in report.warnings)
    assert any(
        "rows of 576 weights" in warning and "other I2_S runtimes" in warning for warning in report.warnings
    )
    checkpoint = open_checkpoint(source)
    weights = packing_of(checkpoint).unpack(checkpoint, "model.layers.0.self_attn.k_proj.weight")
    np.testing.assert_array_equal(
        values(read_gguf(tmp_path / "x.gguf"), "blk.0.attn_k.weight"), weights.dequantize()
    )


def test_elements_that_are_not_whole_blocks(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    # q has 24 x 24 = 576 elements
    shape = Shape(hidden=24, ffn=128, layers=1, heads=4, kv_heads=1, vocab=416)
    source = checkpoint_of("master", shape=shape)
    with pytest.raises(UnsupportedError, match=r"q_proj.*\[24, 24\] cannot be i2_s.*use --type f16"):
        convert(source, tmp_path / "x.gguf", embed_type="f16", type="i2_s")
    convert(source, tmp_path / "x.gguf", embed_type="f16", type="f16")


def test_rows_longer_than_the_kernels_take(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    assert f"max_cols = {MAX_I2_S_ROW};" in (REPOSITORY / "native/kernels/ternary/ternary.h").read_text()
    shape = Shape(hidden=16, ffn=65536 + 256, layers=1, heads=2, kv_heads=2, vocab=416)
    source = checkpoint_of("packed-multiply", shape=shape)
    with pytest.raises(
        UnsupportedError,
        match=r"down_proj.*\[16, 65792\] cannot be i2_s.*use --type tq2_0 or tq1_0 or q2_0 or f16",
    ):
        convert(source, tmp_path / "x.gguf", embed_type="f16", type="i2_s")
    convert(source, tmp_path / "x.gguf", embed_type="f16", type="f16")


def test_a_value_too_large_for_float16(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][3, 4] = 1e5

    folder = resaved(checkpoint_of(), tmp_path / "c", change)
    with pytest.raises(UnsupportedError, match=r"'token_embd.weight' holds 100000.*65504"):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert not (tmp_path / "x.gguf").exists()


def test_values_too_small_for_float16(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][:10] = 1e-9

    report = convert(resaved(checkpoint_of(), tmp_path / "c", change), tmp_path / "x.gguf", embed_type="f16")
    (warning,) = report.warnings
    assert "'model.embed_tokens.weight': 2560 of 131072 values are too small for float16" in warning


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda weight: weight[3].fill_(1e6), "f32"),
        (lambda weight: weight.mul_(1e-7), "f32"),
        (lambda weight: weight[3, :5].fill_(1e-9), "f16"),
        (lambda weight: weight.zero_(), "f16"),
    ],
)
def test_a_float_layer_that_float16_cannot_hold(
    tmp_path: Path, checkpoint_of: Checkpoints, change: Callable[[torch.Tensor], object], kind: str
) -> None:
    name = "model.layers.1.mlp.down_proj"
    kept = edited(
        checkpoint_of(),
        tmp_path / "kept",
        lambda c: c["quantization_config"].update(modules_to_not_convert=[name]),
    )
    folder = resaved(kept, tmp_path / "c", lambda tensors: change(tensors[f"{name}.weight"]))
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert tensors_of(tmp_path / "x.gguf")["blk.1.ffn_down.weight"][0] == kind
    if kind == "f32":
        assert f"'{name}.weight' stays float and is written as f32" in report.warnings[0]
        saved = load_file(folder / "model.safetensors")[f"{name}.weight"].numpy()
        np.testing.assert_array_equal(values(read_gguf(tmp_path / "x.gguf"), "blk.1.ffn_down.weight"), saved)
    else:
        assert not any("float16" in warning for warning in report.warnings)


def test_names_of_types_may_be_in_capital_letters(
    checkpoint_of: Callable[..., Path], tmp_path: Path, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    checkpoint = checkpoint_of("packed-multiply")
    by_function = convert(checkpoint, tmp_path / "a.gguf", type="TQ2_0", embed_type="Q8_0")
    done = run_cli(
        "convert", checkpoint, tmp_path / "b.gguf", "--outtype", "Tq2_0", "--embed-type", "Q8_0", "-q"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert by_function.types[0].type == "tq2_0"


def test_writing_into_a_folder(
    checkpoint_of: Callable[..., Path], tmp_path: Path, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    checkpoint = checkpoint_of("packed-multiply")
    assert run_cli("convert", checkpoint, f"{tmp_path}/", "-q").returncode == 0
    made = tmp_path / f"{checkpoint.name}.gguf"
    assert made.is_file()
    assert "exists; use --force" in run_cli("convert", checkpoint, tmp_path).stderr
    (tmp_path / "other").mkdir()
    convert(made, tmp_path / "other", type="tq2_0")
    assert (tmp_path / "other" / made.name).is_file()
    missing = run_cli("convert", checkpoint, f"{tmp_path}/missing/")
    assert missing.returncode == 1
    assert f"{tmp_path}/missing" in missing.stderr
