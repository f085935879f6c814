"""Writing GGUF: the bytes, the other libraries that read them, and failures that leave nothing behind."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from bitexport.errors import OutputError
from bitexport.gguf.types import F16, F32, I2_S
from bitexport.gguf.writer import TensorSpec, write_gguf

SPECS = [TensorSpec("a", (2, 3), F32), TensorSpec("b", (4,), F16)]
VALUES = {"a": np.arange(6, dtype=np.float32), "b": np.ones(4, dtype=np.float16)}


def data(spec: TensorSpec) -> Iterator[np.ndarray]:
    values = VALUES[spec.name]
    yield values[:1]
    yield values[1:]


def by_hand() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, 2, 3)
    header += text("general.architecture") + struct.pack("<I", 8) + text("test")
    header += text("n") + struct.pack("<II", 4, 7)
    header += text("list") + struct.pack("<IIQ", 9, 8, 2) + text("x") + text("yz")
    header += text("a") + struct.pack("<IQQIQ", 2, 3, 2, 0, 0)
    header += text("b") + struct.pack("<IQIQ", 1, 4, 1, 32)
    header += bytes(-len(header) % 32)
    first = VALUES["a"].tobytes()
    return header + first + bytes(-len(first) % 32) + VALUES["b"].tobytes() + bytes(24)


def test_bytes_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    size = write_gguf(path, "test", {"n": 7, "list": ["x", "yz"]}, SPECS, data)
    assert path.read_bytes() == by_hand()
    assert size == len(by_hand())


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    metadata = {"i": 1, "f": 0.5, "yes": True, "s": "text", "ints": [1, -2], "floats": [0.25]}
    write_gguf(path, "test", metadata, SPECS, data)
    reader = gguf.GGUFReader(path)
    assert {key: reader.fields[key].contents() for key in metadata} == metadata
    np.testing.assert_array_equal(reader.tensors[0].data, VALUES["a"].reshape(2, 3))


def test_type_36_includes_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    spec = TensorSpec("t", (2, 128), I2_S)
    assert spec.nbytes == 2 * 128 // 4 + 32
    write_gguf(path, "test", {}, [spec], lambda _: [np.zeros(spec.nbytes, np.uint8)])
    # name, two dimensions innermost first, the number 36, offset 0
    assert b"\x01" + bytes(7) + b"t" + struct.pack("<IQQIQ", 2, 128, 2, 36, 0) in path.read_bytes()


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        write_gguf(path, "test", {}, SPECS, data)
    assert path.read_text() == "mine"
    write_gguf(path, "test", {}, SPECS, data, force=True)
    assert path.read_bytes()[:4] == b"GGUF"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_appears_in_the_meantime_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with pytest.raises(OutputError, match="exist"):
        write_gguf(path, "test", {}, SPECS, data, check=lambda _: path.write_text("theirs") and None)
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    def failing(spec: TensorSpec) -> Iterator[np.ndarray]:
        if spec.name == "b":
            raise error
        yield from data(spec)

    with pytest.raises(error):
        write_gguf(tmp_path / "x.gguf", "test", {}, SPECS, failing)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_leaves_nothing_behind(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        assert path.read_bytes() == by_hand()  # complete, under its temporary name
        raise ValueError("not good")

    with pytest.raises(ValueError, match="not good"):
        write_gguf(tmp_path / "x.gguf", "test", {"n": 7, "list": ["x", "yz"]}, SPECS, data, check=check)
    assert list(tmp_path.iterdir()) == []


def test_too_few_bytes_are_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="20 bytes given, 24 expected"):
        write_gguf(tmp_path / "x.gguf", "test", {}, SPECS, lambda spec: [VALUES[spec.name][:5]])
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        write_gguf(tmp_path, "test", {}, SPECS, data)
    with pytest.raises(OutputError, match="does not exist"):
        write_gguf(tmp_path / "no" / "x.gguf", "test", {}, SPECS, data)


@pytest.mark.parametrize("force", [True, False])
def test_devices_pipes_and_broken_links_are_rejected(tmp_path: Path, force: bool) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    (tmp_path / "link").symlink_to(pipe)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for place in (pipe, tmp_path / "link", Path("/dev/null")):
        with pytest.raises(OutputError, match="is not a regular file; expected a file name"):
            write_gguf(place, "test", {}, SPECS, data, force=force)
    for place in (tmp_path / "circle", Path("a\0b")):
        with pytest.raises(OutputError, match=r"cannot be resolved|cannot be written"):
            write_gguf(place, "test", {}, SPECS, data, force=force)
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()


def test_a_link_is_kept_and_its_target_is_written(tmp_path: Path) -> None:
    (there := tmp_path / "there").mkdir()
    (there / "x.gguf").write_text("old")
    (link := tmp_path / "link.gguf").symlink_to(there / "x.gguf")
    with pytest.raises(OutputError, match="already exists"):
        write_gguf(link, "test", {}, SPECS, data)
    write_gguf(link, "test", {}, SPECS, data, force=True)
    assert link.is_symlink()
    assert (there / "x.gguf").read_bytes()[:4] == b"GGUF"
    (dangling := tmp_path / "new.gguf").symlink_to(there / "y.gguf")
    write_gguf(dangling, "test", {}, SPECS, data)
    assert dangling.is_symlink()
    assert sorted(there.iterdir()) == [there / "x.gguf", there / "y.gguf"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    path, other = tmp_path / "x.gguf", tmp_path / "other"
    write_gguf(path, "test", {}, SPECS, data)
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
