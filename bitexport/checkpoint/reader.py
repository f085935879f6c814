"""Opens a checkpoint folder and reads its configuration, and its tensors one at a time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.folders import CONFIG, check_folder
from bitexport.checkpoint.limits import check_sizes
from bitexport.checkpoint.safetensors import DTYPE_BYTES, TensorInfo
from bitexport.checkpoint.shards import find_tensors, read_json
from bitexport.checkpoint.spelling import respell
from bitexport.errors import CheckpointError, NotFiniteError
from bitexport.system.reading import open_regular

#: dtypes whose values are weights.
FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")

#: dtypes of packed weights and trits, which are read as they are; any other dtype is an error.
INTEGER_DTYPES: Mapping[str, npt.DTypeLike] = MappingProxyType(
    {"U8": np.uint8, "I8": np.int8, "I32": np.dtype("<i4"), "U32": np.dtype("<u4"), "I64": np.dtype("<i8")}
)

#: NumPy's dtypes of the floats that it has.
_FLOATS: Mapping[str, str] = MappingProxyType({"F16": "<f2", "F32": "<f4", "F64": "<f8"})


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Keeps no tensor data: :meth:`read` maps what it needs and releases it.

    Attributes:
        path: the folder.
        config: ``config.json``.
        tensors: every tensor by its normalized name (``TensorInfo`` has the name in the file); the headers
            of all shards have been checked.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def info(self, name: str) -> TensorInfo:
        """The location, dtype and shape of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(
                f"tensor '{name}' is missing from {self.path}; the checkpoint is incomplete: save or "
                "download it again"
            ) from None

    def read(self, name: str) -> npt.NDArray[Any]:
        """One tensor in its stored shape: floats as float32, integers as they are.

        The result may be a read-only view of the mapped file; the mapping lives as long as the array does.

        Raises:
            CheckpointError: there is no such tensor, its dtype is another one, or a value is NaN or infinite.
        """
        info = self.info(name)
        flat = _decode(info, self._bytes(info, 0, info.nbytes))
        return flat.reshape(info.shape)

    def read_rows(self, name: str, rows: int) -> Iterator[npt.NDArray[Any]]:
        """One tensor of shape ``[n, ...]`` in chunks of up to ``rows`` rows, never all of it in memory.

        Values and errors as in :meth:`read`.
        """
        info = self.info(name)
        if not info.shape or rows < 1:
            raise ValueError("read_rows needs a tensor with at least one dimension and rows >= 1")
        stride = info.nbytes // info.shape[0] if info.shape[0] else 0
        for start in range(0, info.shape[0], rows):
            count = min(rows, info.shape[0] - start)
            flat = _decode(info, self._bytes(info, start * stride, count * stride))
            yield flat.reshape((count, *info.shape[1:]))

    def same_bytes(self, first: str, second: str) -> bool:
        """Whether two tensors have the same dtype, shape and bytes."""
        a, b = self.info(first), self.info(second)
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        step = 64 * 1024 * 1024
        return all(
            np.array_equal(
                self._bytes(a, at, min(step, a.nbytes - at)), self._bytes(b, at, min(step, b.nbytes - at))
            )
            for at in range(0, a.nbytes, step)
        )

    def _bytes(self, info: TensorInfo, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """A range of a tensor's data in a separate mapping, so that freeing the array frees its pages."""
        if nbytes == 0:
            return np.empty(0, dtype=np.uint8)
        begin = info.offset + offset
        base = begin - begin % mmap.ALLOCATIONGRANULARITY
        try:
            with open_regular(info.shard) as file:
                mapped = mmap.mmap(file.fileno(), begin - base + nbytes, offset=base, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{info.shard.name}: tensor '{info.name}' cannot be mapped ({error}); did the file change?"
            ) from error
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        return np.frombuffer(mapped, dtype=np.uint8, count=nbytes, offset=begin - base)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face checkpoint folder and check every shard's header.

    Raises:
        CheckpointError: it is not a checkpoint folder (see :func:`check_folder`), config.json is invalid, or
            :func:`find_tensors` rejects the weights.
    """
    folder = Path(path)
    check_folder(folder)
    config = read_json(folder / CONFIG)
    check_sizes(config)
    tensors = respell(find_tensors(folder))
    _check_no_lora(folder, tensors)
    return Checkpoint(folder, MappingProxyType(config), MappingProxyType(tensors))


def _check_no_lora(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise CheckpointError if a LoRA adapter was saved among the model's tensors."""
    found = next((info.name for name, info in tensors.items() if ".lora_A." in name), None)
    if found is not None:
        raise CheckpointError(
            f"{folder}: tensor '{found}' is part of a LoRA adapter that was saved together with its model; "
            "expected a plain model: merge it in PEFT with model.merge_and_unload() and save that"
        )


def _decode(info: TensorInfo, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    if info.dtype not in FLOAT_DTYPES and info.dtype not in INTEGER_DTYPES:
        raise CheckpointError(
            f"tensor '{info.name}' has dtype {info.dtype}; expected {', '.join(FLOAT_DTYPES)}, or U8 if it "
            "is packed: save it as BF16"
        )
    if raw.ctypes.data % DTYPE_BYTES[info.dtype]:
        raw = raw.copy()
    if info.dtype in INTEGER_DTYPES:
        return raw.view(INTEGER_DTYPES[info.dtype])
    if info.dtype == "BF16":
        values = (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        with np.errstate(over="ignore"):  # a value of F64 that is too large becomes infinite, and is named
            values = raw.view(_FLOATS[info.dtype]).astype(np.float32, copy=False)
    # the sum is finite only if every value is, and needs no mask as large as the tensor; float64 cannot
    # overflow here
    if values.size and not np.isfinite(values.sum(dtype=np.float64)):
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise NotFiniteError(
            f"tensor '{info.name}' holds {values[index]} (element {index} of this read); expected finite "
            "float32 weights: the training run diverged or the file is damaged"
        )
    return values
