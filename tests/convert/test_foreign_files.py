"""Models of other projects: ``convert`` reads them, and everything else says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

import bitexport
from bitexport.convert import convert
from bitexport.errors import BitexportError, UnsupportedError
from bitexport.gguf.dequantize import dequantize
from bitexport.gguf.packers import PACKERS
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.writer import MetadataValue, TensorSpec, write_gguf
from bitexport.inspect import inspect
from bitexport.runtime.session import Session
from bitexport.ternary import GroupedTernary
from tests.support.foreign_files import KINDS, foreign_file
from tests.support.foreign_packers import PACKS, example
from tests.support.gguf_files import changed, rewritten, tensors_of, values
from tests.support.tiny_models import Shape

SHAPE = Shape(hidden=256, ffn=512, layers=1, heads=2, kv_heads=1, vocab=400, context=64)
LAYOUT = "bitnet-b1.58.tensor_data_layout"

#: Each type that is read, its number if it is not its own, and the tool to name.
FILES = [
    ("iq1_bn", None, "ik_llama.cpp"),
    ("iq2_bn", None, "ik_llama.cpp"),
    ("iq2_bn_r4", None, "ik_llama.cpp"),
    ("pq2_0", None, "PrismML's llama.cpp"),
    ("pq2_0", 42, "PrismML"),
    ("pq2_0", 43, "PrismML"),
    ("ptq1_0", None, "PrismML's llama.cpp"),
    ("stq1_0", 42, "Tencent's AngelSlim"),
    ("stq1_0", 43, "Tencent's AngelSlim"),
    ("i2_s_row_scale", None, "Microsoft's BitNet"),
]


@pytest.fixture(scope="module")
def i2_s_file(gguf_of: Callable[..., Path]) -> Path:
    return gguf_of("packed-multiply", shape=SHAPE)


@pytest.mark.parametrize(("name", "number", "maker"), FILES)
def test_the_advice_leads_to_the_same_weights(
    i2_s_file: Path, tmp_path: Path, name: str, number: int | None, maker: str
) -> None:
    source = tmp_path / "foreign.gguf"
    metadata = {LAYOUT: "i2_s_row_scale_v1"} if name == "i2_s_row_scale" else {}
    written = foreign_file(i2_s_file, source, name, number=number, metadata=metadata)
    assert {tensor.type.name for tensor in read_gguf(source).tensors} == {"f32", "f16", name}
    report = inspect(source)
    assert report.types[name] == len(written) == 7
    (note,) = report.notes
    assert maker in note
    assert note.endswith("convert the file first: bitexport convert foreign.gguf OUT.gguf")
    for opener in (Session, bitexport.load):
        with pytest.raises(UnsupportedError) as caught:
            opener(source)
        assert str(caught.value) == note

    with pytest.raises(UnsupportedError, match=r"use --type .*q2_0"):  # I2_S has one scale
        convert(source, tmp_path / "OUT.gguf", type="i2_s")
    done = convert(source, tmp_path / "OUT.gguf", type="q2_0")  # the advice
    assert (done.packing, done.ternary_tensors, done.warnings) == (name, 7, [])
    tensors = tensors_of(tmp_path / "OUT.gguf")
    before = tensors_of(i2_s_file)
    for tensor, (kind, shape, data) in tensors.items():
        if tensor in written:
            expected = PACKERS["q2_0"].pack(GroupedTernary(*written[tensor]))
            assert (kind, data) == ("q2_0", expected.tobytes())
        else:
            assert (kind, shape, data) == before[tensor]
    assert LAYOUT not in read_gguf(tmp_path / "OUT.gguf").metadata
    with Session(tmp_path / "OUT.gguf", n_ctx=16) as session:
        assert np.isfinite(session.logits([5, 6, 7])).all()


def test_one_scale_becomes_i2_s(i2_s_file: Path, tmp_path: Path) -> None:
    """Models of BitNet in IQ2_BN: every row has the tensor's scale, so nothing changes on the way back."""
    from bitexport.gguf.packers import i2_s
    from tests.support.foreign_packers import iq2_bn

    def change(tensor, kind, data):  # type: ignore[no-untyped-def]
        if kind.name != "i2_s":
            return kind, data
        weights = i2_s.unpack(data, tensor.shape)
        scales = np.full((tensor.shape[0], 1), weights.scale)
        return KINDS["iq2_bn"], np.frombuffer(iq2_bn(weights.trits, scales), np.uint8)

    rewritten(i2_s_file, tmp_path / "ik.gguf", change=change)
    convert(tmp_path / "ik.gguf", tmp_path / "x.gguf", type="i2_s")
    assert tensors_of(tmp_path / "x.gguf") == tensors_of(i2_s_file)


def test_ternary_embeddings_and_head(i2_s_file: Path, tmp_path: Path) -> None:
    """As Microsoft's converter for Qwen3.6 writes them."""
    written = foreign_file(
        i2_s_file,
        tmp_path / "rows.gguf",
        "i2_s_row_scale",
        metadata={LAYOUT: "i2_s_row_scale_v1"},
        also=("token_embd.weight",),
    )
    report = convert(tmp_path / "rows.gguf", tmp_path / "x.gguf", type="tq2_0")
    assert report.warnings == []
    assert f"{LAYOUT} i2_s_row_scale_v1 -> removed" in report.changed
    file = read_gguf(tmp_path / "x.gguf")
    for name, (trits, scales) in written.items():
        np.testing.assert_array_equal(values(file, name), trits * scales)
    assert {t.type.name for t in file.tensors if t.name == "token_embd.weight"} == {"f16"}
    with Session(tmp_path / "x.gguf", n_ctx=16) as session:
        assert np.isfinite(session.logits([5, 6, 7])).all()
    convert(tmp_path / "rows.gguf", tmp_path / "y.gguf", type="tq2_0", embed_type="q8_0")
    assert tensors_of(tmp_path / "y.gguf")["token_embd.weight"][0] == "q8_0"


@pytest.mark.parametrize("name", KINDS)
def test_experts(tmp_path: Path, name: str) -> None:
    """Three matrices of 4 x 256 in one tensor, with padding of their own where the type has it."""
    trits, scales = example(name, 12, 256)
    shape = (3, 4, 256)
    data = np.frombuffer(
        PACKS[name](trits.reshape(shape) if name == "i2_s_row_scale" else trits, scales), np.uint8
    )
    spec = TensorSpec("blk.0.ffn_up_exps.weight", shape, KINDS[name])
    keys: dict[str, MetadataValue] = {"qwen35moe.tensor_data_layout": "i2_s_row_scale_v1"}
    metadata = keys if name == "i2_s_row_scale" else {}
    write_gguf(tmp_path / "experts.gguf", "qwen35moe", metadata, [spec], lambda _: [data])
    convert(tmp_path / "experts.gguf", tmp_path / "x.gguf", type="q2_0")
    file = read_gguf(tmp_path / "x.gguf")
    assert (file.tensors[0].shape, file.tensors[0].type.name) == (shape, "q2_0")
    expected = trits * np.repeat(scales, 256 // scales.shape[1], axis=1)
    np.testing.assert_array_equal(dequantize(file, file.tensors[0]).reshape(12, 256), expected)
    before = read_gguf(tmp_path / "experts.gguf")
    np.testing.assert_array_equal(dequantize(before, before.tensors[0]).reshape(12, 256), expected)


@pytest.mark.parametrize("name", ["iq2_bn", "pq2_0"])
def test_a_bad_code_is_found_and_named(i2_s_file: Path, tmp_path: Path, name: str) -> None:
    foreign_file(i2_s_file, tmp_path / "good.gguf", name)
    layer = "blk.0.ffn_up.weight"

    def code_3(data: bytearray, offset: int, _: int) -> None:
        data[offset + 8] |= 0b11

    bad = changed(tmp_path / "good.gguf", tmp_path / "bad.gguf", layer, code_3)
    with pytest.raises(BitexportError, match=rf"bad\.gguf: tensor '{layer}': it contains a code of 3"):
        convert(bad, tmp_path / "x.gguf", type="q2_0")
    (finding,) = inspect(bad, health=True).health or []
    assert finding.level == "warning"
    assert layer in finding.message


def test_rotated_weights_are_refused(i2_s_file: Path, tmp_path: Path) -> None:
    """Bonsai 2: the weights are right only with rotated activations, whatever their type."""
    source = tmp_path / "bonsai.gguf"
    foreign_file(i2_s_file, source, "ptq1_0", metadata={"prism.hadamard.version": 1})
    plain = rewritten(i2_s_file, tmp_path / "plain.gguf", metadata={"prism.hadamard.version": 1})
    for file in (source, plain):
        message = rf"{file.name}: its weights are rotated \(prism\.hadamard\.version\), and only PrismML"
        for open_ in (Session, bitexport.load, lambda path: convert(path, tmp_path / "x.gguf")):
            with pytest.raises(UnsupportedError, match=message):
                open_(file)
        (note,) = inspect(file).notes
        assert "run it there" in note
    assert not (tmp_path / "x.gguf").exists()


def test_the_command_line(
    i2_s_file: Path, tmp_path: Path, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    source = tmp_path / "ik.gguf"
    foreign_file(i2_s_file, source, "iq2_bn")
    shown = run_cli("inspect", source)
    assert shown.returncode == 0
    assert shown.stderr.startswith("warning: ik.gguf: tensor 'blk.0.")
    assert "IQ2_BN of ik_llama.cpp, which this runtime does not run" in shown.stderr
    for arguments in (("run", source, "--prompt", "def"), ("bench", source)):
        done = run_cli(*arguments)
        assert done.returncode == 1
        assert "bitexport convert ik.gguf OUT.gguf" in done.stderr
    done = run_cli("inspect", source, "--health")
    assert done.returncode == 0
    assert "unknown" not in done.stdout
