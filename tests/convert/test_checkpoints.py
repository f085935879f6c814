"""``convert`` and what checkpoints may contain: shards, dtypes, families, float layers, odd tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.packings import packing_of
from bitexport.convert import convert
from bitexport.errors import CheckpointError
from bitexport.gguf.reader import read_gguf
from tests.support.damaged_checkpoints import edited, resaved
from tests.support.gguf_files import tensors_of, values
from tests.support.tiny_models import PACKINGS, Shape

Checkpoints = Callable[..., Path]
SMALL = Shape(hidden=128, ffn=256, layers=1, heads=4, kv_heads=1, vocab=416)


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


def test_a_separate_head_of_a_tied_model(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
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
    assert any("lm_head.weight is present and differs" in warning for warning in report.warnings)
    assert "output.weight" in tensors_of(tmp_path / "other.gguf")


def test_buffers_of_old_checkpoints_are_left_out(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)

    report = convert(resaved(checkpoint_of(), tmp_path / "c", add), tmp_path / "x.gguf", embed_type="f16")
    assert report.tensors == 24


def test_zeros_are_reported(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = resaved(checkpoint_of(), tmp_path / "c", lambda tensors: tensors[name].zero_())
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert any(f"'{name}': all 131,072 weights are zero" in warning for warning in report.warnings)


def test_master_weights_that_are_ternary_already(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].sign_().mul_(0.25)
        # half of them, but no whole row or column
        tensors[name][torch.arange(512)[:, None] % 2 == torch.arange(256) % 2] = 0

    folder = resaved(checkpoint_of(), tmp_path / "c", change)
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    (warning,) = report.warnings
    assert "1 of 14 ternary tensors hold only -a, 0 and a" in warning
    assert "'blk.0.ffn_up.weight' has a = 0.25" in warning
    assert "its scale would shrink to 50.0% of that" in warning
    assert np.abs(values(read_gguf(tmp_path / "x.gguf"), "blk.0.ffn_up.weight")).max() == 0.25


def test_a_bitnet_without_subln_is_announced(checkpoint_of: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = checkpoint_of("master", architecture="bitnet without SubLN")
    report = convert(checkpoint, tmp_path / "m.gguf", dry_run=True)
    assert any("converted as a BitNet without SubLN" in warning for warning in report.warnings)
    assert report.tensors == 2 + 2 * 9
