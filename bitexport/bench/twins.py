"""The same model in another type: what an I2_S file is compared with.

Everything but the ternary tensors is copied byte for byte, so that graph, embedding and head are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import UnsupportedError, UsageError
from bitexport.gguf.packers import f16, i2_s, q4_0, tq2_0
from bitexport.gguf.reader import GGUFFile, GGUFTensor, read_gguf
from bitexport.gguf.types import I2_S, TYPES, TensorType
from bitexport.gguf.writer import ALIGNMENT, MetadataValue, RawValue, TensorSpec, write_gguf
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.ternary import TernaryTensor

#: llama.cpp's file type numbers of the twins.
_FILE_TYPES = {"f16": 1, "q4_0": 2, "tq2_0": 37}

#: bytes of a copied tensor in memory at once.
_CHUNK_BYTES = 8 << 20

_PACK: Mapping[str, Callable[[TernaryTensor], npt.NDArray[np.uint8]]] = MappingProxyType(
    {"f16": f16.pack, "tq2_0": tq2_0.pack, "q4_0": q4_0.pack}
)

#: the types that a twin can have.
TWIN_TYPES = tuple(_PACK)


def check_twin(file: GGUFFile, type_name: str) -> None:
    """Refuse what cannot be built, before anything is.

    Raises:
        UsageError: ``type_name`` is unknown, or the file has no I2_S tensors.
        UnsupportedError: a tensor's rows do not fit the type.
    """
    if type_name not in _PACK:
        raise UsageError(f"a twin cannot be '{type_name}'; expected some of {','.join(TWIN_TYPES)}")
    ternary = [tensor for tensor in file.tensors if tensor.type is I2_S]
    if not ternary:
        raise UsageError(
            f"{file.path} has no I2_S tensors, so there is nothing to compare; convert to I2_S first"
        )
    for tensor in ternary:
        if not TYPES[type_name].fits(tensor.shape):
            raise UnsupportedError(
                f"tensor '{tensor.name}' has rows of {tensor.shape[-1]}, no multiple of "
                f"{TYPES[type_name].block}, which {type_name} needs; leave that type out of --compare"
            )


def twin_bytes(file: GGUFFile, type_name: str) -> int:
    """Bytes of a twin's tensors, about the size of its file."""
    return sum(_type_in_twin(tensor, TYPES[type_name]).nbytes(tensor.shape) for tensor in file.tensors)


def build_twin(source: Path, output: Path, type_name: str, progress: Progress = ignore) -> None:
    """Write the twin of an I2_S file, one tensor after another.

    Args:
        type_name: one of :data:`TWIN_TYPES`.
        progress: told of every tensor, in bytes written.

    Raises:
        UsageError, UnsupportedError: see :func:`check_twin`; or float16 cannot hold a scale.
        OutputError: it cannot be written. Nothing is left behind.
    """
    file = read_gguf(source)
    check_twin(file, type_name)
    kind = TYPES[type_name]
    tensors = {tensor.name: tensor for tensor in file.tensors}
    specs = [TensorSpec(t.name, t.shape, _type_in_twin(t, kind)) for t in file.tensors]
    total = sum(spec.nbytes for spec in specs)
    written = 0

    def data(spec: TensorSpec) -> Iterator[npt.NDArray[Any]]:
        nonlocal written
        for piece in _pieces(file, tensors[spec.name], type_name):
            yield piece
            written += piece.nbytes
            progress(ProgressEvent(written, total, "B", f"making the {type_name} twin"))

    architecture = str(file.metadata.get("general.architecture", ""))
    write_gguf(output, architecture, _metadata(file, type_name), specs, data)


def _type_in_twin(tensor: GGUFTensor, kind: TensorType) -> TensorType:
    return kind if tensor.type is I2_S else tensor.type


def _metadata(file: GGUFFile, type_name: str) -> dict[str, MetadataValue]:
    found: dict[str, MetadataValue] = {
        key: RawValue(file.raw(key)) for key in file.metadata if key != "general.architecture"
    }
    found["general.file_type"] = _FILE_TYPES[type_name]
    if file.metadata.get("general.alignment", ALIGNMENT) != ALIGNMENT:
        del found["general.alignment"]
    return found


def _pieces(file: GGUFFile, tensor: GGUFTensor, type_name: str) -> Iterator[npt.NDArray[np.uint8]]:
    data = file.data(tensor)
    if tensor.type is I2_S:
        rows, columns = tensor.shape
        yield _PACK[type_name](i2_s.unpack(data, (rows, columns)))
    else:
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]
