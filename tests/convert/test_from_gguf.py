"""``convert`` of GGUF files: from any ternary type to any other, and everything else unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import gguf
import numpy as np
import pytest
import torch

from bitexport.convert import ConvertReport, convert
from bitexport.convert.choices import TERNARY_TYPES
from bitexport.errors import GGUFError, OutputError, TokenizerError, UnsupportedError, UsageError
from bitexport.gguf.packers import PACKERS
from bitexport.gguf.reader import GGUFTensor, read_gguf
from bitexport.gguf.types import Q2_0, TYPES, TensorType
from bitexport.gguf.writer import RawValue
from bitexport.progress import ProgressEvent
from bitexport.ternary import GroupedTernary
from tests.support.damaged_checkpoints import edited, resaved
from tests.support.gguf_files import as_microsoft_writes, rewritten, tensors_of, values
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import Shape

Checkpoints = Callable[..., Path]
Ggufs = Callable[..., Path]


@pytest.fixture(scope="module")
def exact(checkpoint_of: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose scales float16 holds, and with a linear layer that stays float."""

    def round_scales(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            if name.endswith("weight_scale"):
                value.copy_(value.half())

    folder = tmp_path_factory.mktemp("exact")
    return resaved(checkpoint_of("packed-multiply", seed=3), folder / "model", round_scales)


@pytest.mark.parametrize("target", TERNARY_TYPES)
@pytest.mark.parametrize("source", TERNARY_TYPES)
def test_the_same_file_as_from_the_checkpoint(tmp_path: Path, exact: Path, source: str, target: str) -> None:
    convert(exact, tmp_path / "source.gguf", type=source)
    convert(exact, tmp_path / "direct.gguf", type=target)
    report = convert(tmp_path / "source.gguf", tmp_path / "x.gguf", type=target)
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "direct.gguf").read_bytes()
    assert report.warnings == []
    assert (report.packing, report.type, report.ternary_tensors) == (source, target, 14)


def test_a_layer_that_was_kept_float_stays(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    name = "model.layers.1.mlp.down_proj"
    folder = edited(
        checkpoint_of(),
        tmp_path / "c",
        lambda config: config["quantization_config"].update(modules_to_not_convert=[name]),
    )
    for kind in ("f16", "i2_s"):
        convert(folder, tmp_path / f"{kind}.gguf", type=kind)
        assert read_gguf(tmp_path / f"{kind}.gguf").elements("bitexport.kept_float") == [
            "blk.1.ffn_down.weight"
        ]
    before = tensors_of(tmp_path / "f16.gguf")
    report = convert(tmp_path / "f16.gguf", tmp_path / "x.gguf", type="tq2_0")
    after = tensors_of(tmp_path / "x.gguf")
    assert after["blk.1.ffn_down.weight"] == before["blk.1.ffn_down.weight"]
    assert after["blk.0.ffn_down.weight"][0] == "tq2_0"
    assert (report.ternary_tensors, report.warnings) == (13, [])
    # without the list: a file of floats has to be ternary throughout, and one of trits shows it by its types
    rewritten(tmp_path / "f16.gguf", tmp_path / "bare.gguf", drop=["bitexport.kept_float"])
    with pytest.raises(UnsupportedError, match=r"bare.gguf: tensor 'blk.1.ffn_down.weight': it is not"):
        convert(tmp_path / "bare.gguf", tmp_path / "y.gguf")
    rewritten(tmp_path / "i2_s.gguf", tmp_path / "bare.gguf", drop=["bitexport.kept_float"])
    report = convert(tmp_path / "bare.gguf", tmp_path / "y.gguf", type="tq1_0")
    assert (
        "1 linear layers are not of a ternary type and stay unchanged: blk.1.ffn_down.weight"
        in (report.warnings[0])
    )


def test_files_of_microsoft(tmp_path: Path, gguf_of: Ggufs) -> None:
    """Metadata of every type stays byte for byte, one scale is read, and the tokenizer is not guessed."""
    odd = {
        "general.author": RawValue(b"\x08\0\0\0\x03\0\0\0\0\0\0\0\xff\xfe!"),  # text that is not UTF-8
        "x.u64": RawValue(b"\x0a\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08"),
        "x.f64": RawValue(b"\x0c\0\0\0\x01\x02\x03\x04\x05\x06\x07\x40"),
        "x.bools": RawValue(b"\x09\0\0\0\x07\0\0\0\x02\0\0\0\0\0\0\0\x01\x00"),
        "x.none": RawValue(b"\x09\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0"),
    }
    foreign = as_microsoft_writes(gguf_of("packed-multiply"), tmp_path / "foreign.gguf")
    foreign = rewritten(foreign, tmp_path / "foreign.gguf", metadata=odd)
    report = convert(foreign, tmp_path / "x.gguf", type="tq2_0")
    before, after = read_gguf(foreign), read_gguf(tmp_path / "x.gguf")
    assert list(before.metadata) == list(after.metadata)
    assert {key for key in before.metadata if before.raw(key) != after.raw(key)} == {"general.file_type"}
    assert after.metadata["general.architecture"] == report.architecture == "bitnet-25"
    assert report.changed == ["general.file_type 40 -> 37"]
    assert any("names no pre-tokenizer, and its vocabulary is unknown" in text for text in report.warnings)
    for tensor in before.tensors:
        rounded = values(before, tensor.name)
        if tensor.type.name == "i2_s":
            rounded = np.sign(rounded) * np.float32(np.float16(np.abs(rounded).max()))
        np.testing.assert_array_equal(values(after, tensor.name), rounded)
    convert(foreign, tmp_path / "y.gguf", type="i2_s", pre_tokenizer="gpt-2")
    assert read_gguf(tmp_path / "y.gguf").metadata["tokenizer.ggml.pre"] == "gpt-2"
    original = tensors_of(gguf_of("packed-multiply"))
    copied = tensors_of(tmp_path / "y.gguf")
    assert copied == original  # the scale eight times again


def test_rounded_scales_are_reported(tmp_path: Path, gguf_of: Ggufs) -> None:
    source = gguf_of("master")
    for kind in ("tq2_0", "tq1_0", "q2_0", "f16"):
        report = convert(source, tmp_path / f"{kind}.gguf", type=kind)
        (row,) = [row for row in report.types if row.zero_fraction is not None]
        assert 0 < (row.scale_rounding or 0) <= 2**-11
        assert f"rounded to float16, by up to {row.scale_rounding:.2g}" in report.warnings[0]
        back = convert(tmp_path / f"{kind}.gguf", tmp_path / f"{kind}-back.gguf", type="i2_s")
        assert back.warnings == []
        found, expected = tensors_of(tmp_path / f"{kind}-back.gguf"), tensors_of(source)
        for name, (_, _, data) in expected.items():
            same = slice(None) if "norm" in name or "embd" in name else slice(0, -32)
            assert found[name][2][same] == data[same]


def test_the_report_is_that_of_the_checkpoint(tmp_path: Path, exact: Path) -> None:
    direct = convert(exact, tmp_path / "i2_s.gguf")
    events: list[ProgressEvent] = []
    report = convert(tmp_path / "i2_s.gguf", tmp_path / "x.gguf", progress=events.append)
    for row, expected in zip(report.types, direct.types, strict=True):
        assert row == replace(expected, bytes_before=row.bytes_before)
    assert report.output_bytes == direct.output_bytes == (tmp_path / "x.gguf").stat().st_size
    assert report.changed == []
    assert [event.total for event in events] == [report.input_bytes] * len(events)
    assert (events[0].done, events[-1].done) == (0, report.input_bytes)


def test_embeddings_stay_unless_asked(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    source = checkpoint_of(tied=False)
    for kind in ("f16", "q6_k"):
        convert(source, tmp_path / f"{kind}.gguf", embed_type=kind)
        kept = convert(tmp_path / f"{kind}.gguf", tmp_path / "x.gguf", type="tq2_0", force=True)
        assert kept.embed_type == kind
        names = ("token_embd.weight", "output.weight")
        before, after = tensors_of(tmp_path / f"{kind}.gguf"), tensors_of(tmp_path / "x.gguf")
        assert [after[name] for name in names] == [before[name] for name in names]
    asked = convert(tmp_path / "f16.gguf", tmp_path / "y.gguf", embed_type="q6_k")
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "q6_k.gguf").read_bytes()
    assert asked.changed == ["bitexport.embedding_type f16 -> q6_k"]
    assert asked.warnings == []
    again = convert(tmp_path / "q6_k.gguf", tmp_path / "z.gguf", embed_type="q8_0")
    assert [text for text in again.warnings if "already rounded to q6_k" in text] == again.warnings
    assert len(again.warnings) == 2
    np.testing.assert_allclose(
        values(read_gguf(tmp_path / "z.gguf"), "output.weight"),
        values(read_gguf(tmp_path / "q6_k.gguf"), "output.weight"),
        atol=0.02,
    )


def test_rows_of_576(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    shape = Shape(hidden=576, ffn=1536, layers=1, heads=9, kv_heads=3, vocab=416)
    source = checkpoint_of("packed-multiply", shape=shape)
    convert(source, tmp_path / "q2_0.gguf", embed_type="f16", type="q2_0")
    report = convert(tmp_path / "q2_0.gguf", tmp_path / "x.gguf")
    assert any("rows of 576 weights" in text and "other I2_S runtimes" in text for text in report.warnings)
    with pytest.raises(
        UnsupportedError, match=r"'blk.0.attn_q.weight'.*cannot be tq1_0.*--type i2_s or q2_0 or f16"
    ):
        convert(tmp_path / "x.gguf", tmp_path / "y.gguf", type="tq1_0")
    with pytest.raises(UnsupportedError, match=r"'token_embd.weight'.*cannot be q6_k.*--embed-type .*q8_0"):
        convert(tmp_path / "x.gguf", tmp_path / "y.gguf", embed_type="q6_k")
    assert not (tmp_path / "y.gguf").exists()


def test_blocks_with_different_scales(tmp_path: Path, gguf_of: Ggufs) -> None:
    """As in Bonsai's Q2_0 files: only some types can hold them, which an error for the others names."""

    def grouped(tensor: GGUFTensor, kind: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
        if tensor.name != "blk.0.attn_k.weight":
            return kind, data
        trits = PACKERS["i2_s"].unpack(data, (tensor.shape[0], tensor.shape[1])).trits
        scales = np.full((len(trits), trits.shape[1] // 64), 0.5, np.float32)
        scales[5, 1] = 0.25
        return Q2_0, PACKERS["q2_0"].pack(GroupedTernary(trits, scales))

    source = rewritten(gguf_of("packed-multiply"), tmp_path / "q2_0.gguf", change=grouped)
    why = r"'blk.0.attn_k.weight' .*per group of 64.*--type auto or q2_0 or f16"
    for kind in ("i2_s", "tq2_0"):
        with pytest.raises(UnsupportedError, match=why):
            convert(source, tmp_path / "x.gguf", type=kind)
    convert(source, tmp_path / "f16.gguf", type="f16")
    convert(tmp_path / "f16.gguf", tmp_path / "x.gguf", type="q2_0")
    name = "blk.0.attn_k.weight"
    assert tensors_of(tmp_path / "x.gguf")[name] == tensors_of(source)[name]
    np.testing.assert_array_equal(
        values(read_gguf(tmp_path / "f16.gguf"), name), values(read_gguf(source), name)
    )


def _quantized(tensor: GGUFTensor, kind: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
    if tensor.name != "blk.0.attn_v.weight":
        return kind, data
    rows = data.view(np.float16).reshape(tensor.shape).astype(np.float32)
    return TYPES["q8_0"], gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0).reshape(-1)


def _float(tensor: GGUFTensor, kind: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
    if tensor.name == "blk.1.ffn_up.weight":
        data.view(np.float16)[7] = 0.123
    return kind, data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_quantized, "'blk.0.attn_v.weight' is q8_0, which is not ternary"),
        (_float, "'blk.1.ffn_up.weight': it is not ternary: "),
    ],
)
def test_a_tensor_that_is_not_ternary_is_named(
    tmp_path: Path,
    exact: Path,
    change: Callable[[GGUFTensor, TensorType, np.ndarray], tuple[TensorType, np.ndarray]],
    message: str,
) -> None:
    convert(exact, tmp_path / "f16.gguf", type="f16")
    source = rewritten(tmp_path / "f16.gguf", tmp_path / "bad.gguf", change=change)
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError) as caught:
        convert(source, tmp_path / "out" / "x.gguf")
    assert message in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_files_that_are_not_ternary_models(tmp_path: Path, gguf_of: Ggufs) -> None:
    parts = rewritten(
        gguf_of("master"), tmp_path / "parts.gguf", metadata={"split.count": RawValue(b"\x02\0\0\0\x03\0")}
    )
    with pytest.raises(UnsupportedError, match="one of 3 parts"):
        convert(parts, tmp_path / "x.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(GGUFError, match="not a GGUF file"):
        convert(tmp_path / "text.gguf", tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="'q4_0' is unknown"):
        convert(gguf_of("master"), tmp_path / "x.gguf", type="q4_0")


def test_a_damaged_tensor_is_named(tmp_path: Path, gguf_of: Ggufs) -> None:
    def change(tensor: GGUFTensor, kind: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
        if tensor.name == "blk.1.attn_q.weight":
            data[5] = 0xFF
        return kind, data

    source = rewritten(gguf_of("master"), tmp_path / "bad.gguf", change=change)
    with pytest.raises(GGUFError, match=r"bad.gguf: tensor 'blk.1.attn_q.weight': .*code of 3"):
        convert(source, tmp_path / "x.gguf", type="tq2_0")
    assert not (tmp_path / "x.gguf").exists()


def test_outputs_that_are_refused(tmp_path: Path, gguf_of: Ggufs) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(gguf_of("master").read_bytes())
    (tmp_path / "link.gguf").symlink_to(source)
    before = source.read_bytes()
    for target in (source, tmp_path / "link.gguf"):
        with pytest.raises(OutputError, match="is the file being converted"):
            convert(source, target, force=True)
        with pytest.raises(OutputError, match="already exists"):
            convert(source, target)
    assert source.read_bytes() == before
    (tmp_path / "old.gguf").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        convert(source, tmp_path / "old.gguf")
    convert(source, tmp_path / "old.gguf", force=True)
    assert tensors_of(tmp_path / "old.gguf") == tensors_of(source)
    report = convert(source, tmp_path / "none" / "x.gguf", dry_run=True, type="tq1_0")
    assert report.dry_run
    assert not (tmp_path / "none").exists()


def test_another_alignment_and_a_missing_version(tmp_path: Path, gguf_of: Ggufs) -> None:
    source = gguf_of("master")
    content = rewritten(
        source,
        tmp_path / "x.gguf",
        metadata={"general.alignment": 16},
        drop=["general.quantization_version", "general.file_type"],
    )
    report = convert(content, tmp_path / "y.gguf")
    assert report.changed == [
        "general.file_type missing -> 40",
        "general.quantization_version missing -> 2",
        "general.alignment 16 -> 32",
    ]
    assert tensors_of(tmp_path / "y.gguf") == tensors_of(source)


def test_a_layout_with_unusual_statistics_gets_a_warning(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    def change(_: GGUFTensor, kind: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
        if kind.name == "i2_s":
            data[:-32][: len(data) // 4] = 0b10101010
        return kind, data

    shape = Shape(hidden=512, ffn=1024, layers=1, heads=4, kv_heads=4)
    convert(checkpoint_of("packed-multiply", shape=shape), tmp_path / "good.gguf")
    assert convert(tmp_path / "good.gguf", tmp_path / "x.gguf", type="tq2_0").warnings[1:] == []
    source = rewritten(tmp_path / "good.gguf", tmp_path / "odd.gguf", change=change)
    report = convert(source, tmp_path / "y.gguf", type="tq2_0")
    assert any("another layout that shares type number 36" in text for text in report.warnings)


def test_large_tensors_are_copied_in_pieces(
    tmp_path: Path, gguf_of: Ggufs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitexport.convert.from_gguf.CHUNK_BYTES", 100)
    convert(gguf_of("master"), tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == gguf_of("master").read_bytes()


def test_the_command_line(tmp_path: Path, exact: Path, run_cli: Callable[..., CompletedProcess[str]]) -> None:
    convert(exact, tmp_path / "a.gguf")
    done = run_cli("convert", tmp_path / "a.gguf", tmp_path / "b.gguf", "--type", "tq1_0", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert document["type"] == "tq1_0"
    assert document.keys() - {"schema"} == ConvertReport.__dataclass_fields__.keys()
    human = run_cli("convert", tmp_path / "b.gguf", tmp_path / "c.gguf")
    assert human.returncode == 0, human.stderr
    assert "metadata: general.file_type 36 -> 40; bitexport.ternary_type tq1_0 -> i2_s" in human.stdout
    assert "bitnet-b1.58 from tq1_0 weights, 24 tensors (14 ternary)" in human.stdout
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()
    refused = run_cli("convert", tmp_path / "c.gguf", tmp_path / "c.gguf", "--force")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1


def test_the_shipped_example_round_trip(tmp_path: Path) -> None:
    convert(REPOSITORY / "examples" / "tiny-python", tmp_path / "a.gguf")
    source = tmp_path / "a.gguf"
    for kind in TERNARY_TYPES[1:]:
        convert(source, tmp_path / f"{kind}.gguf", type=kind)
        source = tmp_path / f"{kind}.gguf"
    convert(source, tmp_path / "b.gguf")
    before, after = tensors_of(tmp_path / "a.gguf"), tensors_of(tmp_path / "b.gguf")
    assert {name: (kind, shape) for name, (kind, shape, _) in before.items()} == {
        name: (kind, shape) for name, (kind, shape, _) in after.items()
    }
    assert all(data[:-32] == after[name][2][:-32] for name, (_, _, data) in before.items())


def test_a_pre_tokenizer_that_llama_cpp_lacks_is_refused(
    gguf_of: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match="pre-tokenizer 'zzz'"):
        convert(gguf_of(), tmp_path / "y.gguf", pre_tokenizer="zzz")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_gguf_file_is_not_opened_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"x\.gguf: cannot be read"):
        convert(tmp_path / "x.gguf", tmp_path / "y.gguf")
