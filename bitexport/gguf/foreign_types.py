"""Tensor types of other projects' GGUF files: their numbers, who made them, and what to do with them.

A number says little: forks of llama.cpp chose theirs independently, and upstream later gave some of them to
other types. Where several types share a number, the sizes of a file's tensors decide; where they do not, all
of them are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bitexport.gguf.types import I2_S_ID, TYPES_BY_ID, TensorType

MICROSOFT = "Microsoft's BitNet"
IK = "ik_llama.cpp"
OLD_IK = "ik_llama.cpp before October 2024"
PRISM = "PrismML's llama.cpp"
OLD_PRISM = "early PrismML llama.cpp"
ANGELSLIM = "Tencent's AngelSlim"
OLD_GGML = "llama.cpp before 2025"

#: What to do with a type that cannot be read.
ANOTHER = "convert the checkpoint, or use another file of the model"

# Types that are read, by packers of the same name.
IQ1_BN = TensorType("iq1_bn", 134, block=64, block_bytes=13, row_bytes=2)
IQ2_BN = TensorType("iq2_bn", 135, block=64, block_bytes=16, row_bytes=4)
IQ2_BN_R4 = TensorType("iq2_bn_r4", 335, block=64, block_bytes=16, row_bytes=4, rows=4)
PQ2_0 = TensorType("pq2_0", 142, block=128, block_bytes=34)
PTQ1_0 = TensorType("ptq1_0", 143, block=128, block_bytes=28)
STQ1_0 = TensorType("stq1_0", 43, block=256, block_bytes=42)
I2_S_ROW_SCALE = TensorType("i2_s_row_scale", I2_S_ID, block=128, block_bytes=32, row_bytes=4, padding=32)

READABLE = (IQ1_BN, IQ2_BN, IQ2_BN_R4, PQ2_0, PTQ1_0, STQ1_0, I2_S_ROW_SCALE)


@dataclass(frozen=True, slots=True)
class ForeignType:
    """A tensor type of another project under one of its numbers.

    Attributes:
        number: in the file.
        name: as its maker prints it.
        maker: the project that writes it.
        storage: the type as it is read; None if it is not.
        size: the bytes of a tensor of a shape (outermost first); None if unknown, or if ``storage`` says it.
        reason: why it is not read, a clause; empty if it is.
        advice: what to do, if it is not read.
    """

    number: int
    name: str
    maker: str
    storage: TensorType | None = None
    size: Callable[[Sequence[int]], int] | None = None
    reason: str = ""
    advice: str = ANOTHER

    def nbytes(self, shape: Sequence[int]) -> int | None:
        """Bytes of a tensor of ``shape``; None if it cannot have that shape, or if they are unknown."""
        if self.storage is not None:
            return self.storage.nbytes(shape) if self.storage.fits(shape) else None
        return self.size(shape) if self.size is not None and shape else None

    def __str__(self) -> str:
        """Such as ``TL1 of Microsoft's BitNet (its order of weights ...)``."""
        return f"{self.name} of {self.maker}" + (f" ({self.reason})" if self.reason else "")


def _read(kind: TensorType, maker: str, number: int | None = None, name: str = "") -> ForeignType:
    return ForeignType(kind.id if number is None else number, name or kind.name.upper(), maker, kind)


def _blocks(block: int, block_bytes: int) -> Callable[[Sequence[int]], int]:
    return lambda shape: math.prod(shape) // block * block_bytes


def _not_ternary(
    number: int, name: str, maker: str, size: Callable[[Sequence[int]], int] | None = None
) -> ForeignType:
    return ForeignType(number, name, maker, size=size, reason="not ternary")


def _tl1_bytes(shape: Sequence[int]) -> int:
    return math.prod(shape) // 4 + 32


def _tl2_bytes(shape: Sequence[int]) -> int:
    rows, columns = math.prod(shape[:-1]), shape[-1]
    size = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    return size + -size % 32 + 32


_TILED = (
    "the order of its weights depends on the {} kernels that one model was built with; the file does not say"
)
_TL = "use the I2_S file of the model, or convert the checkpoint"
_NO_SCALES = "without scales, later replaced by one with scales"
_OLD_TN = "later replaced by IQ{}_BN"

_TYPES = (
    # microsoft/BitNet's llama.cpp (Eddie-Wang1120/llama.cpp, merge-dev), ggml.h, and ggml_nbytes in ggml.c;
    # the order: microsoft/BitNet, utils/convert-hf-to-gguf-bitnet.py, which reads include/kernel_config.ini
    ForeignType(37, "I8_S", MICROSOFT, size=math.prod, reason="8-bit activations, not used for weights"),
    ForeignType(38, "TL1", MICROSOFT, size=_tl1_bytes, reason=_TILED.format("ARM"), advice=_TL),
    ForeignType(39, "TL2", MICROSOFT, size=_tl2_bytes, reason=_TILED.format("x86"), advice=_TL),
    # isHuangXin/BitNet 518bfec, utils/convert-qwen36-to-gguf-bitnet.py
    _read(I2_S_ROW_SCALE, MICROSOFT, name="I2_S with row scales"),
    # sabdulmajid/llama.cpp 106eac0, branch i2sr-row-scale-runtime; the size is not published
    ForeignType(40, "I2_SR", "sabdulmajid's BitNet", reason="four rows interleaved, with row scales"),
    # ggml-org/llama.cpp, ggml.h: removed in 2023, and from GGUF files in November and December 2024
    _not_ternary(4, "Q4_2", OLD_GGML, _blocks(16, 10)),
    _not_ternary(5, "Q4_3", OLD_GGML, _blocks(16, 12)),
    _not_ternary(31, "Q4_0_4_4", OLD_GGML, _blocks(32, 18)),
    _not_ternary(32, "Q4_0_4_8", OLD_GGML, _blocks(32, 18)),
    _not_ternary(33, "Q4_0_8_8", OLD_GGML, _blocks(32, 18)),
    _not_ternary(36, "IQ4_NL_4_4", OLD_GGML, _blocks(32, 18)),
    _not_ternary(37, "IQ4_NL_4_8", OLD_GGML, _blocks(32, 18)),
    _not_ternary(38, "IQ4_NL_8_8", OLD_GGML, _blocks(32, 18)),
    # PrismML-Eng/llama.cpp, ggml-common.h and ggml.h; issue 167 there on the number 42 of the first releases
    _not_ternary(40, "Q1_0 with blocks of 32", OLD_PRISM, _blocks(32, 6)),
    _read(PQ2_0, OLD_PRISM, 42, "Q2_0 with blocks of 128"),
    _read(PQ2_0, OLD_PRISM, 43, "Q2_0 with blocks of 128"),
    _read(PQ2_0, PRISM),
    _read(PTQ1_0, PRISM),
    # ggml-org/llama.cpp, pull request 22836: number 43; published files have 42, from before Q2_0 took it
    _read(STQ1_0, ANGELSLIM),
    _read(STQ1_0, ANGELSLIM, 42),
    # ggml-org/llama.cpp, pull request 19357: values -3, -1, 1 and 3 times a scale
    _not_ternary(40, "Q2_0C", ANGELSLIM, _blocks(512, 130)),
    # ikawrakow/ik_llama.cpp 8337e4c, ggml.h and the type traits in ggml.c
    _read(IQ1_BN, IK),
    _read(IQ2_BN, IK),
    _read(IQ2_BN_R4, IK),
    # the same at 58a323f and 4a5d5e2: blocks without a scale, which was in tensors of its own
    ForeignType(134, "IQ1_BN", OLD_IK, size=_blocks(64, 13), reason=_NO_SCALES),
    ForeignType(135, "IQ2_BN", OLD_IK, size=_blocks(64, 16), reason=_NO_SCALES),
    ForeignType(142, "IQ2_TN", OLD_IK, size=_blocks(256, 66), reason=_OLD_TN.format(2)),
    ForeignType(143, "IQ1_TN", OLD_IK, size=_blocks(256, 54), reason=_OLD_TN.format(1)),
)  # fmt: skip

#: The other types of ik_llama.cpp (8337e4c, ggml.h). None is ternary.
_IK_NAMES = {
    97: "Q8_0_X4", 98: "Q8_1_X4", 99: "Q8_2_X4", 133: "Q6_0", 136: "Q8_K64", 137: "IQ2_K", 138: "IQ3_K",
    139: "IQ4_K", 140: "IQ5_K", 141: "IQ6_K", 144: "IQ4_KS", 145: "IQ2_KS", 146: "IQ4_KSS", 147: "Q8_K16",
    148: "Q8_K32", 149: "Q8_KR8", 150: "Q8_K128", 151: "Q8_KV", 152: "IQ5_KS", 153: "IQ2_KT", 154: "IQ3_KT",
    155: "IQ4_KT", 156: "IQ3_KS", 157: "IQ2_KL", 158: "IQ1_KT", 202: "Q4_0_R8", 206: "Q5_0_R4",
    208: "Q8_0_R8", 210: "Q2_K_R4", 211: "Q3_K_R4", 212: "Q4_K_R4", 213: "Q5_K_R4", 214: "Q6_K_R4",
    216: "IQ2_XXS_R4", 217: "IQ2_XS_R4", 218: "IQ3_XXS_R4", 219: "IQ1_S_R4", 220: "IQ4_NL_R4",
    221: "IQ3_S_R4", 222: "IQ2_S_R4", 223: "IQ4_XS_R8", 229: "IQ1_M_R4", 230: "BF16_R16", 233: "Q6_0_R4",
    337: "IQ2_K_R4", 338: "IQ3_K_R4", 339: "IQ4_K_R4", 340: "IQ5_K_R4", 344: "IQ4_KS_R4", 352: "IQ5_KS_R4",
    353: "MXFP4_R8", 397: "Q8_K_R16", 398: "Q8_KV_R8", 399: "Q8_K_R8",
}  # fmt: skip

FOREIGN_TYPES = _TYPES + tuple(_not_ternary(number, name, IK) for number, name in _IK_NAMES.items())

#: The foreign types that are read, by how they are stored, each under its own number.
FOREIGN_OF_STORAGE: Mapping[TensorType, ForeignType] = MappingProxyType(
    {kind.storage: kind for kind in FOREIGN_TYPES if kind.storage and kind.storage.id == kind.number}
)

#: The value of ``<architecture>.tensor_data_layout`` for I2_S with row scales.
ROW_SCALE_LAYOUT = "i2_s_row_scale_v1"

#: Files of PrismML whose weights are rotated have keys that begin like this.
ROTATION_PREFIX = "prism.hadamard."


def layout_key(metadata: Mapping[str, Any]) -> str:
    """The key that names the layout of a file's tensors."""
    return f"{metadata.get('general.architecture')}.tensor_data_layout"


def unknown_layout(number: int, metadata: Mapping[str, Any]) -> str:
    """What is wrong with the layout of I2_S that a file names, as the end of an error message; or nothing."""
    key = layout_key(metadata)
    layout = metadata.get(key)
    if number != I2_S_ID or layout == ROW_SCALE_LAYOUT or not str(layout).startswith("i2_s"):
        return ""
    return f", and {key} is {layout!r}; expected {ROW_SCALE_LAYOUT} or no such key: {ANOTHER}"


@dataclass(frozen=True, slots=True)
class Room:
    """The place of a tensor in a file: its shape, and how many bytes lie before the next tensor.

    Attributes:
        last: nothing follows, so that the room may lack the padding.
    """

    shape: tuple[int, ...]
    nbytes: int
    last: bool

    def holds(self, size: int | None, alignment: int) -> bool:
        """Whether a tensor of ``size`` bytes fills this place, padding included."""
        if size is None:
            return False
        if self.last:
            return size <= self.nbytes <= size + -size % alignment
        return self.nbytes == size + -size % alignment


def candidates(number: int) -> list[ForeignType]:
    """The foreign types that share a number."""
    return [kind for kind in FOREIGN_TYPES if kind.number == number]


def storage_of(
    number: int, rooms: Iterable[Room], alignment: int, metadata: Mapping[str, Any]
) -> TensorType | None:
    """The type of a file's tensors with one number: upstream's, or a foreign one that has their sizes.

    Args:
        number: the number of the type.
        rooms: the places of all tensors of that number.
        alignment: of the tensors' positions in the file.
        metadata: of the file.

    Returns:
        None if the type is not one that is read.
    """
    upstream = TYPES_BY_ID.get(number)
    if number == I2_S_ID and metadata.get(layout_key(metadata)) == ROW_SCALE_LAYOUT:
        return I2_S_ROW_SCALE
    foreign = [kind for kind in candidates(number) if kind.storage is not None and number != I2_S_ID]
    if upstream is not None and not foreign:
        return upstream
    places = list(rooms)
    if upstream is not None and _fills(upstream, places, alignment):
        return upstream
    for kind in foreign:
        if kind.storage is not None and _fills(kind.storage, places, alignment):
            return kind.storage
    if upstream is None and len(candidates(number)) == 1:
        return foreign[0].storage if foreign else None  # a wrong size is reported as damage
    return upstream


def _fills(kind: TensorType, places: Sequence[Room], alignment: int) -> bool:
    return all(
        kind.fits(place.shape) and place.holds(kind.nbytes(place.shape), alignment) for place in places
    )


def unknown_type(number: int, room: Room, alignment: int) -> str:
    """A description of a type that is not read, as the end of an error message.

    Args:
        room: the place of one of its tensors.
    """
    named = candidates(number)
    if not named:
        return ", which neither llama.cpp nor any fork known to bitexport has; use another file of the model"
    fitting = [kind for kind in named if kind.size is None and kind.storage is None]
    fitting += [kind for kind in named if room.holds(kind.nbytes(room.shape), alignment)]
    if fitting:
        return f": it is {' or '.join(map(str, fitting))}; {fitting[0].advice}"
    return (
        f": it is {' or '.join(map(str, named))}, but the size of the tensor does not fit; {named[0].advice}"
    )


def other_type(number: int, room: Room, alignment: int) -> str:
    """The foreign types that a tensor of the wrong size may have, as the end of an error message.

    Returns:
        Empty if no other project uses the number for a type that is not read.
    """
    named = candidates(number)
    fitting = [kind for kind in named if room.holds(kind.nbytes(room.shape), alignment)]
    if fitting:
        return f": that is the size of {' or '.join(map(str, fitting))}; {fitting[0].advice}"
    unread = [kind for kind in named if kind.storage is None and number != I2_S_ID]
    if not unread:
        return ""
    return f": it may be {' or '.join(map(str, unread))}, or damaged; {unread[0].advice}"
