"""``convert`` from end to end: what is in the file, however the checkpoint was saved."""

from __future__ import annotations

import json
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitexport.checkpoint import open_checkpoint
from bitexport.convert import convert
from bitexport.convert.choices import EMBED_CHOICES, TERNARY_TYPES, TYPE_CHOICES
from bitexport.errors import CheckpointError, UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.progress import ProgressEvent
from tests.support.damaged_checkpoints import resaved
from tests.support.gguf_files import tensors_of, values
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import PACKINGS, Shape, stable_master, tiny_checkpoint

Checkpoints = Callable[..., Path]


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
    """Against the master weights, quantized here rather than by our packings."""
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
    report = convert(folder, tmp_path / "x.gguf")
    assert (report.architecture, report.packing) == ("bitnet-b1.58", "packed-multiply")
    assert report.warnings == []
    (row,) = [row for row in report.types if row.type == "i2_s"]
    assert 0.2 < (row.zero_fraction or 0) < 0.5


def test_the_same_bytes_every_time(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    for name in ("a", "b"):
        convert(checkpoint_of(), tmp_path / f"{name}.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


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
    from bitexport.checkpoint.packings.float_ternary import CHUNK
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
        for name, info in tensors.items():
            # of the master weights, the first rows are; and a few scales
            again = 4 * CHUNK if packing == "master" or name.endswith("_scale") else 0
            assert info.nbytes <= read[name] <= info.nbytes + min(info.nbytes, again)


def test_unknown_types(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    with pytest.raises(UsageError, match="'q4_0' is unknown; expected one of auto, i2_s"):
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

    assert typing.get_args(command.TernaryType) == TYPE_CHOICES
    assert set(typing.get_args(command.EmbedType)) == set(EMBED_CHOICES)
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
    assert "tokenizer gpt2, pre-tokenizer gpt-2, 512 tokens, 112 of them padding" in human.stdout
    assert (
        f"wrote {tmp_path / 'x.gguf'}: bitnet-b1.58 from master weights, 24 tensors (14 ternary)"
        in human.stdout
    )
