"""Reading GGUF headers: files of the gguf package, and damaged ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitexport.errors import GGUFError
from bitexport.gguf import reader
from bitexport.gguf.packers import i2_s
from bitexport.gguf.reader import Array, read_gguf
from bitexport.gguf.types import F32, I2_S
from bitexport.gguf.writer import TensorSpec, write_gguf
from bitexport.ternary import TernaryTensor

TRITS = np.random.default_rng(0).integers(-1, 2, (4, 128), dtype=np.int8)
PACKED = i2_s.pack(TernaryTensor(TRITS, np.float32(0.5)))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(tensors: bytes, count: int, keys: bytes = b"", key_count: int = 0, version: int = 3) -> bytes:
    found = b"GGUF" + struct.pack("<IQQ", version, count, key_count) + keys + tensors
    return found + bytes(-len(found) % 32)


def i2_s_entry(name: str, rows: int, offset: int, columns: int = 128) -> bytes:
    return text(name) + struct.pack("<IQQIQ", 2, columns, rows, 36, offset)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "x.gguf"
    path.write_bytes(content)
    return path


def test_reads_files_of_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "test")
    writer.add_string("s", "text")
    writer.add_bool("yes", True)
    for kind in ("int8", "int16", "int32", "int64"):
        getattr(writer, f"add_{kind}")(kind, -5)
        getattr(writer, f"add_u{kind}")(f"u{kind}", 5)
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_array("words", ["one", "zwei", "три"])
    writer.add_array("numbers", list(range(100)))
    writer.add_tensor("t", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("q", np.zeros((3, 34), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = read_gguf(path)
    assert file.version == 3
    assert file.metadata["general.architecture"] == "test"
    assert (file.metadata["s"], file.metadata["yes"]) == ("text", True)
    assert all(file.metadata[kind] == -5 for kind in ("int8", "int16", "int32", "int64"))
    assert all(file.metadata[f"u{kind}"] == 5 for kind in ("int8", "int16", "int32", "int64"))
    assert (file.metadata["f32"], file.metadata["f64"]) == (0.1, 0.1)
    assert isinstance(file.metadata["words"], Array)
    assert file.elements("words") == ["one", "zwei", "три"]
    assert file.elements("numbers", 3) == [0, 1, 2]
    assert [(t.name, t.type.name, t.shape, t.nbytes) for t in file.tensors] == [
        ("t", "f32", (2, 32), 256),
        ("q", "q8_0", (3, 32), 102),
    ]
    np.testing.assert_array_equal(file.data(file.tensors[0]).view(np.float32), np.arange(64))


def test_type_36_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    specs = [TensorSpec("a", (4, 128), I2_S), TensorSpec("b", (3,), F32)]
    values = {"a": PACKED, "b": np.ones(3, np.float32)}
    write_gguf(path, "test", {}, specs, lambda spec: [values[spec.name]])
    file = read_gguf(path)
    first = file.tensors[0]
    assert (first.type, first.shape, first.nbytes) == (I2_S, (4, 128), 4 * 128 // 4 + 32)
    assert (first.offset % 32, file.tensors[1].offset) == (0, first.offset + 160)
    np.testing.assert_array_equal(i2_s.unpack(file.data(first), (4, 128)).trits, TRITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends at 0"),
        (b"GGU", "ends at 3"),
        (b"GGML" + bytes(100), "not a GGUF file"),
        (header(b"", 0, version=1), "version 1"),
        (header(b"", 0, version=3 << 24), "little-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0), "more than a file of 24 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "more than a file of 24 bytes"),
        (header(b"", 0, struct.pack("<Q", 2**63) + bytes(64), 1), "but the file ends at"),
        (header(b"", 0, text("k") + struct.pack("<I", 77), 1), "has type 77"),
        (header(b"", 0, text("k") + struct.pack("<IIQ", 9, 4, 2**61), 1), "more than a file of"),
        (header(b"", 0, text("k") + struct.pack("<IIQ", 9, 8, 2**61), 1), "more than a file of"),
        (header(b"", 0, text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(12), 1), "has elements of type 9"),
        (header(b"", 0, (text("k") + struct.pack("<II", 4, 1)) * 2, 2), "appears twice"),
        (header(b"", 0, text("general.alignment") + struct.pack("<II", 4, 24), 1), "power of two"),
        (header(text("t") + struct.pack("<I", 5) + bytes(40), 1), "5 dimensions"),
        (header(text("t") + struct.pack("<IQIQ", 1, 4, 99, 0), 1), "type 99"),
        (header(text("t") + struct.pack("<IQIQ", 1, 33, 8, 0), 1), "not a multiple of its block"),
        (header(text("t") + struct.pack("<IQIQ", 1, 4, 0, 0), 1), "ends at byte"),
        (header(text("t") + struct.pack("<IQQIQ", 2, 2**32, 2**31, 0, 0), 1), "ends at byte"),
        (header((text("t") + struct.pack("<IQIQ", 1, 4, 0, 0)) * 2, 2) + bytes(64), "appears twice"),
        (header(text("t") + struct.pack("<IQIQ", 1, 4, 0, 64), 1) + bytes(96), "starts at 64, expected 0"),
    ],
    # the contents would make unreadable names
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_headers(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(GGUFError, match=message) as caught:
        read_gguf(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_type_36_without_its_tail(tmp_path: Path) -> None:
    short = header(i2_s_entry("t", 4, 0), 1) + bytes(128)  # the codes alone
    with pytest.raises(GGUFError, match=r"'t' .i2_s, 160 bytes. ends at byte"):
        read_gguf(write(tmp_path, short))


def test_type_36_with_too_little_room(tmp_path: Path) -> None:
    # the second tensor starts where the codes of the first end
    entries = i2_s_entry("first", 4, 0) + i2_s_entry("second", 4, 128)
    with pytest.raises(GGUFError, match=r"'first' of type 36.*room for 128 bytes, expected 160"):
        read_gguf(write(tmp_path, header(entries, 2) + bytes(320)))


def test_type_36_with_too_much_room(tmp_path: Path) -> None:
    entries = i2_s_entry("first", 4, 0) + i2_s_entry("second", 4, 256)
    with pytest.raises(GGUFError, match="room for 256 bytes, expected 160"):
        read_gguf(write(tmp_path, header(entries, 2) + bytes(512)))
    with pytest.raises(GGUFError, match="followed by bytes that do not belong to it"):
        read_gguf(write(tmp_path, header(i2_s_entry("t", 4, 0), 1) + bytes(160 + 32)))


def test_type_36_that_is_not_a_multiple_of_the_block(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"type 36 .* not a multiple of its block of 128"):
        read_gguf(write(tmp_path, header(i2_s_entry("t", 3, 0, columns=64), 1) + bytes(160)))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(GGUFError, match="is a folder, and a GGUF file is expected; give the path"):
        read_gguf(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(GGUFError, match=f"bitexport convert {tmp_path} {tmp_path.name}.gguf"):
        read_gguf(tmp_path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_raises_only_our_own_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    keys = (
        text("k")
        + struct.pack("<IIQ", 9, 8, 2)
        + text("x")
        + text("yz")
        + text("n")
        + struct.pack("<IB", 7, 1)
    )
    good = bytearray(header(i2_s_entry("t", 4, 0) + i2_s_entry("u", 4, 160), 2, keys, 2) + bytes(320))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "x.gguf"
    path.write_bytes(bytes(good[: data.draw(st.integers(0, len(good)))]))
    try:
        file = read_gguf(path)
    except GGUFError:
        return
    for key, value in file.metadata.items():
        if isinstance(value, Array):
            file.elements(key)
    assert all(tensor.offset + tensor.nbytes <= path.stat().st_size for tensor in file.tensors)


def test_a_header_is_read_again_when_the_file_has_changed(
    gguf_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_of("packed-multiply").read_bytes())
    # fresh: it could change again and keep its times
    assert read_gguf(path) is not read_gguf(path)
    monkeypatch.setattr(reader, "_TICK", 0)
    kept = read_gguf(path)
    assert read_gguf(path) is kept
    path.write_bytes(path.read_bytes().replace(b"general.name", b"general.mane"))
    assert "general.mane" in read_gguf(path).metadata
    path.unlink()
    with pytest.raises(GGUFError, match="cannot be read"):
        read_gguf(path)
    for number in range(20):
        other = tmp_path / f"{number}.gguf"
        other.write_bytes(gguf_of("packed-multiply").read_bytes())
        read_gguf(other)
    assert len(reader._known) <= reader._MOST_KNOWN


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\nb", r"has the name 'a\\nb', expected printable text"),
        ("a\x1b[31m", "expected printable text"),
        ("a" * 2000, "has a name of 2000 characters, expected at most 1024"),
    ],
)
def test_names_that_would_spoil_a_message(tmp_path: Path, name: str, message: str) -> None:
    """Messages repeat them: each is to be one line."""
    number = struct.pack("<II", 4, 7)
    for content in (header(i2_s_entry(name, 4, 0), 1), header(b"", 0, text(name) + number, 1)):
        with pytest.raises(GGUFError, match=message) as caught:
            read_gguf(write(tmp_path, content))
        assert "\n" not in str(caught.value)
