"""Safetensors headers written by hand, valid and damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bitexport.checkpoint.safetensors import read_header
from bitexport.errors import CheckpointError


def file_of(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file; ``header`` is JSON text, or a document that is written as JSON."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_files_of_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {
        "b": np.ones((2, 3), np.float16),
        "a": np.arange(5, dtype=np.float32),
        "s": np.zeros((), np.uint8),
    }
    save_file(arrays, path, metadata={"format": "np"})
    found = read_header(path)
    assert {name: info.shape for name, info in found.items()} == {"a": (5,), "b": (2, 3), "s": ()}
    assert {name: info.dtype for name, info in found.items()} == {"a": "F32", "b": "F16", "s": "U8"}
    content = path.read_bytes()
    for name, array in arrays.items():
        info = found[name]
        assert content[info.offset : info.offset + info.nbytes] == array.tobytes()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "not valid JSON"),
        (b"[" * 100000, b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b"[]", b"", "expected an object"),
        ({"a\ud800": entry(0, 4, [1])}, bytes(4), "is not printable text"),
        ({"a\nb": entry(0, 4, [1])}, bytes(4), "is not printable text"),
        (b'{"a": 1}', b"", "lacks dtype"),
        (b'{"a": {"dtype": "F32", "shape": [1]}}', b"", "lacks dtype, shape or data_offsets"),
        ({"a": entry(0, 4, [1], "F99")}, bytes(4), "unknown dtype 'F99'"),
        ({"a": entry(0, 4, [1], [])}, bytes(4), "unknown dtype"),  # type: ignore[arg-type]
        ({"a": entry(0, 4, [-1])}, bytes(4), "not a list of sizes"),
        ({"a": entry(0, 4, [1.0])}, bytes(4), "not a list of sizes"),  # type: ignore[list-item]
        ({"a": entry(0, 4, [True])}, bytes(4), "not a list of sizes"),
        ({"a": entry(-4, 0, [1])}, bytes(4), "not a pair of positions"),
        ({"a": entry(0, 8, [1])}, bytes(8), "8 bytes of data, but shape .1. of F32 takes 4"),
        ({"a": entry(8, 0, [1])}, bytes(8), "-8 bytes of data"),
        ({"a": entry(0, 2**62, [2**60])}, bytes(8), "truncated"),
        ({"a": entry(0, 4, [1])}, bytes(3), "truncated"),
        ({"a": entry(0, 4, [1])}, bytes(5), "1 bytes after the last tensor"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12), "overlaps"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12), "gap"),
        ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(4), "overlaps"),
    ],
    # the contents would make unreadable names
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_headers(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file_of(tmp_path, header, data))
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_appears_twice(tmp_path: Path) -> None:
    one = json.dumps(entry(0, 4, [1]))
    with pytest.raises(CheckpointError, match="'a' twice"):
        read_header(file_of(tmp_path, f'{{"a": {one}, "a": {one}}}'.encode(), bytes(4)))


@pytest.mark.parametrize("length", [2**63, 100, 10**9])
def test_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match=f"claims {length} bytes"):
        read_header(file_of(tmp_path, {}, length=length))


@pytest.mark.parametrize("content", [b"", b"\x00" * 7])
def test_no_header_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="too few"):
        read_header(path)


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    assert read_header(file_of(tmp_path, {"__metadata__": {"format": "pt"}})) == {}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_raises_only_our_own_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = json.dumps({"a": entry(0, 8, [2]), "b": entry(8, 12, [2, 1], "BF16"), "__metadata__": {}}).encode()
    good = bytearray(struct.pack("<Q", len(raw)) + raw + bytes(12))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(bytes(good[: data.draw(st.integers(0, len(good)))]))
    try:
        found = read_header(path)
    except CheckpointError:
        return
    assert all(info.offset + info.nbytes <= path.stat().st_size for info in found.values())
