"""Type numbers of other projects: each is named with its tool, and sizes tell apart what shares a number."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import bitexport
from bitexport.bench import bench
from bitexport.convert import convert
from bitexport.errors import GGUFError
from bitexport.gguf.foreign_types import FOREIGN_TYPES, IQ2_BN, PQ2_0, STQ1_0
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import F32, Q2_0, TYPES, TensorType
from bitexport.inspect import inspect
from bitexport.runtime.session import Session

SHAPE = (96, 768)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def write(
    folder: Path, number: int, nbytes: int, *, shape: tuple[int, ...] = SHAPE, keys: bytes = b""
) -> Path:
    """A file with one tensor of ``nbytes`` bytes and type ``number``, and a vector after it."""
    room = nbytes + -nbytes % 32
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, keys.count(b"general.") + keys.count(b"layout")) + keys
    for name, dims, kind, offset in (("blk.0.a.weight", shape, number, 0), ("last", (8,), F32.id, room)):
        head += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims[::-1])
        head += struct.pack("<IQ", kind, offset)
    path = folder / "x.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(room + 32))
    return path


def tl2_bytes(rows: int, columns: int) -> int:
    codes = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    return codes + -codes % 32 + 32


COUNT = SHAPE[0] * SHAPE[1]


@pytest.mark.parametrize(
    ("number", "nbytes", "message"),
    [
        (
            31,
            COUNT // 32 * 18,
            "type 31: it is Q4_0_4_4 of llama.cpp before 2025 .not ternary.*convert the check",
        ),
        (36, COUNT // 32 * 18, "that is the size of IQ4_NL_4_4 of llama.cpp before 2025 .not ternary"),
        (37, COUNT, "type 37: it is I8_S of Microsoft's BitNet .8-bit activations"),
        (37, COUNT // 32 * 18, "type 37: it is IQ4_NL_4_8 of llama.cpp before 2025"),
        (38, COUNT // 4 + 32, "type 38: it is TL1 of Microsoft's BitNet .*ARM kernels.*use the I2_S file"),
        (38, COUNT // 32 * 18, "type 38: it is IQ4_NL_8_8 of llama.cpp before 2025"),
        (38, 64, "type 38: it is TL1 of .* or IQ4_NL_8_8 of .*, but the size of the tensor does not fit"),
        (39, tl2_bytes(*SHAPE), "the size of TL2 of Microsoft's BitNet .*x86 kernels.*use the I2_S file"),
        (40, COUNT // 32 * 6, "the size of Q1_0 with blocks of 32 of early PrismML"),
        (40, COUNT // 256 * 65, "the size of Q2_0C of Tencent's AngelSlim .not ternary"),
        (40, 64, "it may be I2_SR of sabdulmajid's BitNet .four rows interleaved.* or Q1_0 with"),
        (5, 64, "type 5: it is Q4_3 of llama.cpp before 2025 .not ternary"),
        (134, COUNT // 64 * 13, "type 134: it is IQ1_BN of ik_llama.cpp before October 2024 .without scales"),
        (142, COUNT // 256 * 66, "type 142: it is IQ2_TN of ik_llama.cpp before October 2024"),
        (143, COUNT // 256 * 54, "type 143: it is IQ1_TN of ik_llama.cpp before October 2024"),
        (
            137,
            64,
            "type 137: it is IQ2_K of ik_llama.cpp .not ternary.; convert the checkpoint, or use another",
        ),
        (99, 64, "type 99: it is Q8_2_X4 of ik_llama.cpp"),
        (
            135,
            64,
            "type 135: it is IQ2_BN of ik_llama.cpp or IQ2_BN of .*, but the size of the tensor does not fit",
        ),
        (1000, 64, "type 1000, which neither llama.cpp nor any fork known to bitexport has"),
    ],
)
def test_types_that_are_not_read_are_named(tmp_path: Path, number: int, nbytes: int, message: str) -> None:
    if number == 40 and nbytes == COUNT // 256 * 65:
        path = write(tmp_path, number, 96 * 1024 // 512 * 130, shape=(96, 1024))
    else:
        path = write(tmp_path, number, nbytes)
    with pytest.raises(GGUFError, match=message):
        read_gguf(path)


def test_every_command_names_the_type(tmp_path: Path) -> None:
    path = write(tmp_path, 38, COUNT // 4 + 32)
    commands: tuple[Callable[[Path], object], ...] = (
        inspect,
        Session,
        bitexport.load,
        bench,
        lambda file: convert(file, tmp_path / "out.gguf"),
    )
    for command in commands:
        with pytest.raises(GGUFError, match=r"tensor 'blk\.0\.a\.weight' has type 38: it is TL1 of"):
            command(path)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(42, Q2_0), (42, PQ2_0), (42, STQ1_0), (43, PQ2_0), (43, STQ1_0), (39, TYPES["mxfp4"]), (135, IQ2_BN)],
)
def test_sizes_decide_between_types_with_one_number(tmp_path: Path, number: int, kind: TensorType) -> None:
    file = read_gguf(write(tmp_path, number, kind.nbytes(SHAPE)))
    assert file.tensors[0].type is kind


def test_layouts_of_i2_s_that_the_file_names(tmp_path: Path) -> None:
    def keys(layout: str) -> bytes:
        architecture = text("general.architecture") + struct.pack("<I", 8) + text("qwen35moe")
        return architecture + text("qwen35moe.tensor_data_layout") + struct.pack("<I", 8) + text(layout)

    size = COUNT // 4 + 4 * SHAPE[0]
    file = read_gguf(write(tmp_path, 36, size, keys=keys("i2_s_row_scale_v1")))
    assert file.tensors[0].type.name == "i2_s_row_scale"
    with pytest.raises(GGUFError, match=r"i2_s_row_scale, 18816 bytes\) ends at byte"):
        read_gguf(write(tmp_path, 36, COUNT // 4 + 32, keys=keys("i2_s_row_scale_v1")))
    with pytest.raises(
        GGUFError, match="tensor_data_layout is 'i2_s_row_scale_v2'; expected i2_s_row_scale_v1"
    ):
        read_gguf(write(tmp_path, 36, size, keys=keys("i2_s_row_scale_v2")))
    file = read_gguf(write(tmp_path, 36, COUNT // 4 + 32, keys=keys("Meta AI original pth")))
    assert file.tensors[0].type.name == "i2_s"


def test_every_row_of_the_table_is_complete() -> None:
    assert len({(kind.number, kind.name, kind.maker) for kind in FOREIGN_TYPES}) == len(FOREIGN_TYPES)
    for kind in FOREIGN_TYPES:
        assert (kind.storage is None) == bool(kind.reason)
