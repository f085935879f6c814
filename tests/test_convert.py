"""``convert`` from end to end: what is in the file, however the checkpoint was saved."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.packings import packing_of
from bitexport.convert import convert
from bitexport.errors import CheckpointError, UnsupportedError, UsageError
from bitexport.gguf import i2_s
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.plan import EMBED_TYPES, MAX_I2_S_ROW, TERNARY_TYPES
from bitexport.progress import ProgressEvent
from tests.conftest import REPOSITORY
from tests.models import PACKINGS, Shape, stable_master, tiny_checkpoint

Checkpoints = Callable[..., Path]
SMALL = Shape(hidden=128, ffn=256, layers=1, heads=4, kv_heads=1, vocab=416)


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    file = read_gguf(path)
    return {t.name: (t.type.name, t.shape, file.data(t).tobytes()) for t in file.tensors}


def values(file: GGUFFile, name: str) -> np.ndarray:
    """A tensor of the file as float32."""
    (tensor,) = [t for t in file.tensors if t.name == name]
    data = file.data(tensor)
    if tensor.type.name == "i2_s":
        return i2_s.unpack(data, tensor.shape).dequantize()  # type: ignore[arg-type]
    kind = gguf.GGMLQuantizationType(tensor.type.id)
    if kind is gguf.GGMLQuantizationType.F32:
        return data.view(np.float32).reshape(tensor.shape)
    return gguf.quants.dequantize(data.reshape(*tensor.shape[:-1], -1), kind)


def edited(source: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a checkpoint with another config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def resaved(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


@pytest.mark.parametrize("ternary_type", TERNARY_TYPES)
def test_the_three_packings_give_identical_tensors(
    tmp_path: Path, checkpoint_of: Checkpoints, ternary_type: str
) -> None:
    found = []
    for packing in PACKINGS:
        report = convert(checkpoint_of(packing), tmp_path / f"{packing}.gguf", type=ternary_type)
        assert report.packing == packing
        found.append(tensors_of(tmp_path / f"{packing}.gguf"))
    assert found[0] == found[1] == found[2]


def test_values_are_those_of_the_checkpoint(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    """Against the master weights themselves, quantized here, and not by our packings."""
    source = checkpoint_of("master", tied=False)
    convert(source, tmp_path / "x.gguf", embed_type="f16")
    file = read_gguf(tmp_path / "x.gguf")
    saved = load_file(source / "model.safetensors")
    assert len(file.tensors) == len(saved)
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.1.attn_sub_norm.weight": "model.layers.1.self_attn.attn_sub_norm.weight",
        "blk.0.ffn_sub_norm.weight": "model.layers.0.mlp.ffn_sub_norm.weight",
        "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
        "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
    }
    for name, original in pairs.items():
        expected = saved[original].numpy()
        if "norm" not in name:
            expected = expected.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(values(file, name), expected)
    for name, original in {
        "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
        "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    }.items():
        _, trits, mean = stable_master(saved[original].numpy())
        np.testing.assert_array_equal(values(file, name), trits * mean)


def test_metadata(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    convert(checkpoint_of(), tmp_path / "x.gguf")
    metadata = read_gguf(tmp_path / "x.gguf").metadata
    expected = {
        "general.architecture": "bitnet-b1.58",
        "general.name": "master",
        "general.file_type": 40,
        "general.quantization_version": 2,
        "bitexport.embedding_type": "q6_k",
        "bitexport.packing": "master",
        "bitnet-b1.58.attention.head_count_kv": 2,
        "bitnet-b1.58.attention.layer_norm_rms_epsilon": 1e-5,
        "bitnet-b1.58.rope.freq_base": 500000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
    }
    assert {key: metadata.get(key) for key in expected} == expected


@pytest.mark.parametrize(("kind", "number"), [("i2_s", 40), ("f16", 1), ("tq2_0", 37)])
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


@pytest.mark.parametrize(("kind", "tolerance"), [("f16", 0.0), ("q8_0", 1e-2), ("q6_k", 3e-2)])
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


def test_embeddings_are_the_same_in_pieces(
    tmp_path: Path, checkpoint_of: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(checkpoint_of(), tmp_path / "whole.gguf")
    monkeypatch.setattr("bitexport.encode.CHUNK_WEIGHTS", 256 * 7)
    convert(checkpoint_of(), tmp_path / "pieces.gguf")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_memory_is_bounded_by_the_piece_and_not_by_the_tensor(
    tmp_path: Path, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    shape = Shape(hidden=1024, ffn=1024, layers=1, heads=8, kv_heads=8, vocab=65536)
    source = tiny_checkpoint(tmp_path / "c", "packed-multiply", shape=shape)
    embedding = 65536 * 1024 * 4
    done = run_cli("convert", source, tmp_path / "x.gguf", "--embed-type", "q8_0", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["input_bytes"] > embedding
    # Python and its libraries take about 100 MiB of it
    assert report["peak_rss_bytes"] < embedding


def test_the_shipped_example(tmp_path: Path) -> None:
    folder = REPOSITORY / "examples" / "tiny-python"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("the example is not trained yet")
    report = convert(folder, tmp_path / "x.gguf")
    assert (report.architecture, report.packing) == ("bitnet-b1.58", "packed-multiply")
    assert report.warnings == []
    (row,) = [row for row in report.types if row.type == "i2_s"]
    assert 0.2 < (row.zero_fraction or 0) < 0.5


def test_the_same_bytes_every_time(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    for name in ("a", "b"):
        convert(checkpoint_of(), tmp_path / f"{name}.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("packing", PACKINGS)
def test_shards_and_dtypes_do_not_matter(tmp_path: Path, checkpoint_of: Checkpoints, packing: str) -> None:
    convert(checkpoint_of(packing), tmp_path / "one.gguf", embed_type="f16")
    convert(checkpoint_of(packing, shards=3), tmp_path / "three.gguf", embed_type="f16")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "three.gguf").read_bytes()
    convert(checkpoint_of(packing, dtype=torch.bfloat16), tmp_path / "bf16.gguf", embed_type="f16")
    one, half = tensors_of(tmp_path / "one.gguf"), tensors_of(tmp_path / "bf16.gguf")
    ternary = [name for name, (kind, _, _) in one.items() if kind == "i2_s"]
    assert all(one[name] == half[name] for name in ternary)
    assert one["output_norm.weight"] != half["output_norm.weight"]


def test_llama_rows_are_interleaved_after_unpacking(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    found = {}
    for packing in PACKINGS:
        source = checkpoint_of(packing, architecture="llama", tied=False, shape=SMALL)
        convert(source, tmp_path / f"{packing}.gguf", embed_type="f16")
        found[packing] = tensors_of(tmp_path / f"{packing}.gguf")
    assert found["master"] == found["packed-multiply"] == found["packed-divide"]
    file = read_gguf(tmp_path / "master.gguf")
    assert file.metadata["general.architecture"] == "llama"
    source = open_checkpoint(checkpoint_of("master", architecture="llama", tied=False, shape=SMALL))
    for name, original, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 1), ("attn_v", "v_proj", 0)):
        weights = (
            packing_of(source).unpack(source, f"model.layers.0.self_attn.{original}.weight").dequantize()
        )
        if heads:  # [heads, 2, half, in] -> [heads, half, 2, in]
            weights = weights.reshape(heads, 2, 16, 128).transpose(0, 2, 1, 3).reshape(weights.shape)
        np.testing.assert_array_equal(values(file, f"blk.0.{name}.weight"), weights)


def test_rope_factors_are_written(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**scaling, "rope_theta": 500000.0, "original_max_position_embeddings": 64}
    source = checkpoint_of("packed-divide", architecture="llama", shape=SMALL)
    folder = edited(source, tmp_path / "c", lambda c: c.update(rope_parameters=rope))
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    file = read_gguf(tmp_path / "x.gguf")
    assert values(file, "rope_freqs.weight").shape == (16,)
    assert report.tensors == len(file.tensors)


def test_modules_to_not_convert(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    name = "model.layers.1.mlp.down_proj"
    folder = edited(
        checkpoint_of(),
        tmp_path / "c",
        lambda c: c["quantization_config"].update(modules_to_not_convert=[name, "lm_head"]),
    )
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert (report.ternary_tensors, report.warnings) == (13, [])
    file = read_gguf(tmp_path / "x.gguf")
    saved = load_file(folder / "model.safetensors")[f"{name}.weight"].numpy()
    np.testing.assert_array_equal(values(file, "blk.1.ffn_down.weight"), saved.astype(np.float16))


def test_a_conversion_without_ternary_tensors(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    def change(listed: object) -> Callable[[dict[str, Any]], object]:
        return lambda c: c["quantization_config"].update(modules_to_not_convert=listed)

    folder = edited(checkpoint_of(), tmp_path / "c", change(["model"]))
    with pytest.raises(CheckpointError, match=r"modules_to_not_convert \['model'\] keeps every linear layer"):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    folder = edited(checkpoint_of(), tmp_path / "text", change("q_proj"))
    with pytest.raises(CheckpointError, match="is 'q_proj'; expected a list"):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert not (tmp_path / "x.gguf").exists()


def test_a_head_that_transformers_would_quantize(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    folder = edited(
        checkpoint_of(tied=False),
        tmp_path / "c",
        lambda c: c["quantization_config"].update(modules_to_not_convert=[]),
    )
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert any("lm_head" in warning for warning in report.warnings)


def test_a_head_beside_tied_embeddings(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    def same(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    def other(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2

    report = convert(
        resaved(checkpoint_of(), tmp_path / "same", same), tmp_path / "same.gguf", embed_type="f16"
    )
    assert report.warnings == []
    assert "output.weight" not in tensors_of(tmp_path / "same.gguf")
    report = convert(
        resaved(checkpoint_of(), tmp_path / "other", other), tmp_path / "other.gguf", embed_type="f16"
    )
    assert any("lm_head.weight is there and differs" in warning for warning in report.warnings)
    assert "output.weight" in tensors_of(tmp_path / "other.gguf")


def test_buffers_of_old_checkpoints_are_left_out(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)

    report = convert(resaved(checkpoint_of(), tmp_path / "c", add), tmp_path / "x.gguf", embed_type="f16")
    assert report.tensors == 24


def test_zeros_are_told(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = resaved(checkpoint_of(), tmp_path / "c", lambda tensors: tensors[name].zero_())
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert any(f"'{name}' is all zeros" in warning for warning in report.warnings)


def test_rows_of_576(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    shape = Shape(hidden=576, ffn=1536, layers=1, heads=9, kv_heads=3, vocab=416)
    source = checkpoint_of("packed-multiply", shape=shape)
    with pytest.raises(UnsupportedError, match=r"\[416, 576\] cannot be q6_k.*--embed-type q8_0 or f16"):
        convert(source, tmp_path / "x.gguf")
    with pytest.raises(UnsupportedError, match=r"cannot be tq2_0.*--type i2_s or f16"):
        convert(source, tmp_path / "x.gguf", embed_type="q8_0", type="tq2_0")
    report = convert(source, tmp_path / "x.gguf", embed_type="q8_0")
    assert any(
        "rows of 576 weights" in warning and "other I2_S runtimes" in warning for warning in report.warnings
    )
    checkpoint = open_checkpoint(source)
    weights = packing_of(checkpoint).unpack(checkpoint, "model.layers.0.self_attn.k_proj.weight")
    np.testing.assert_array_equal(
        values(read_gguf(tmp_path / "x.gguf"), "blk.0.attn_k.weight"), weights.dequantize()
    )


def test_elements_that_fill_no_block(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    # q has 24 x 24 = 576 elements
    shape = Shape(hidden=24, ffn=128, layers=1, heads=4, kv_heads=1, vocab=416)
    source = checkpoint_of("master", shape=shape)
    with pytest.raises(UnsupportedError, match=r"q_proj.*\[24, 24\] cannot be i2_s.*use --type f16"):
        convert(source, tmp_path / "x.gguf", embed_type="f16")
    convert(source, tmp_path / "x.gguf", embed_type="f16", type="f16")


def test_rows_longer_than_the_kernels_take(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    assert f"max_cols = {MAX_I2_S_ROW};" in (REPOSITORY / "native" / "ternary" / "ternary.h").read_text()
    shape = Shape(hidden=16, ffn=65536 + 256, layers=1, heads=2, kv_heads=2, vocab=416)
    source = checkpoint_of("packed-multiply", shape=shape)
    with pytest.raises(UnsupportedError, match=r"down_proj.*\[16, 65792\] cannot be i2_s.*use --type f16"):
        convert(source, tmp_path / "x.gguf", embed_type="f16")
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
        assert report.warnings == []


def test_master_weights_that_are_ternary_already(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].sign_().mul_(0.25)[:256].zero_()

    folder = resaved(checkpoint_of(), tmp_path / "c", change)
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    (warning,) = report.warnings
    assert "1 of 14 ternary tensors hold only -a, 0 and a" in warning
    assert "'blk.0.ffn_up.weight' has a = 0.25" in warning
    assert "and 0.125 is the scale that quantization_mode online gives it" in warning
    assert np.abs(values(read_gguf(tmp_path / "x.gguf"), "blk.0.ffn_up.weight")).max() == 0.125


def test_dry_run_reads_everything_and_writes_nothing(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    real = convert(checkpoint_of(), tmp_path / "x.gguf")
    report = convert(checkpoint_of(), tmp_path / "dry" / "y.gguf", dry_run=True)
    assert report.dry_run
    assert report.types == real.types
    assert sorted(tmp_path.iterdir()) == [tmp_path / "x.gguf"]

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*nan"):
        convert(resaved(checkpoint_of(), tmp_path / "c", damage), tmp_path / "y.gguf", dry_run=True)


def test_the_report_adds_up(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = checkpoint_of("packed-divide")
    events: list[ProgressEvent] = []
    report = convert(source, tmp_path / "x.gguf", progress=events.append)
    assert report.output_bytes == (tmp_path / "x.gguf").stat().st_size
    assert (
        report.input_bytes == open_checkpoint(source).nbytes == sum(row.bytes_before for row in report.types)
    )
    assert (report.tensors, report.ternary_tensors) == (24, 14)
    assert sum(row.tensors for row in report.types) == 24
    assert report.seconds > 0
    assert report.peak_rss_bytes > 10 * 2**20
    ternary = report.types[0]
    assert ternary.type == "i2_s"
    assert 0.2 < (ternary.zero_fraction or 0) < 0.4
    assert ternary.bits_per_weight == pytest.approx(2, abs=0.01)
    assert 0 < (ternary.scale_min or 0) <= (ternary.scale_max or 0) < 0.1
    assert [event.total for event in events] == [report.input_bytes] * len(events)
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (events[0].done, events[-1].done) == (0, report.input_bytes)


def test_no_tensor_is_read_twice(
    tmp_path: Path, checkpoint_of: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitexport.checkpoint.reader import Checkpoint

    read: dict[str, int] = {}
    original = Checkpoint._bytes

    def counted(self: Checkpoint, info: Any, offset: int, nbytes: int) -> Any:
        read[info.name] = read.get(info.name, 0) + nbytes
        return original(self, info, offset, nbytes)

    monkeypatch.setattr(Checkpoint, "_bytes", counted)
    for packing in PACKINGS:
        read.clear()
        convert(checkpoint_of(packing), tmp_path / "x.gguf", force=True)
        tensors = open_checkpoint(checkpoint_of(packing)).tensors
        assert read == {name: info.nbytes for name, info in tensors.items()}


def test_options_that_are_none(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    with pytest.raises(UsageError, match="'q4_0' is unknown; expected one of i2_s"):
        convert(checkpoint_of(), tmp_path / "x.gguf", type="q4_0")
    with pytest.raises(UsageError, match="embed_type 'i2_s'"):
        convert(checkpoint_of(), tmp_path / "x.gguf", embed_type="i2_s")


def test_neither_torch_nor_transformers_is_needed(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'safetensors']))"
    run = "from bitexport.cli import main; main(['convert', *sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked}; {run}", checkpoint_of(), tmp_path / "x.gguf"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_command_line(
    tmp_path: Path, checkpoint_of: Checkpoints, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    from bitexport.cli import convert as command

    assert set(typing.get_args(command.TernaryType)) == set(TERNARY_TYPES)
    assert set(typing.get_args(command.EmbedType)) == set(EMBED_TYPES)
    done = run_cli("convert", checkpoint_of(), tmp_path / "x.gguf", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert document["output"] == str(tmp_path / "x.gguf")
    contract = {"architecture", "tensors", "ternary_tensors", "input_bytes", "output_bytes", "seconds"}
    contract |= {"peak_rss_bytes", "warnings"}
    assert contract <= document.keys()
    human = run_cli("convert", checkpoint_of(), tmp_path / "x.gguf", "--force", "--type", "tq2_0")
    assert human.returncode == 0
    assert "tq2_0" in human.stdout
    assert "tokenizer gpt2, split as gpt-2, 512 tokens, 112 of them padding" in human.stdout
    assert (
        f"wrote {tmp_path / 'x.gguf'}: bitnet-b1.58 from master weights, 24 tensors (14 ternary)"
        in human.stdout
    )
