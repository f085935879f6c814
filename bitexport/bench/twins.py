"""The same model in another type, which a ternary file is compared with.

Everything but the ternary tensors is copied byte for byte, so that graph, embedding and head are the same.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from bitexport.convert.driver import convert_source
from bitexport.convert.from_gguf import GGUFSource
from bitexport.convert.source import PlannedTensor
from bitexport.errors import UnsupportedError, UsageError
from bitexport.gguf.names import OUTPUT_HEAD, TOKEN_EMBEDDING
from bitexport.gguf.reader import GGUFFile, GGUFTensor, read_gguf
from bitexport.gguf.types import F16, FILE_TYPES, I2_S, Q2_0, Q4_0, TQ1_0, TQ2_0, TYPES
from bitexport.gguf.writer import TensorSpec
from bitexport.progress import Progress, ignore

#: The types that our kernels run, of which a file that is compared has at least one.
COMPARED_TYPES = (I2_S.name, Q2_0.name, TQ2_0.name, TQ1_0.name)

#: The twin that is the same file, on llama.cpp's own kernels. It has none for I2_S.
SAME_FILE = "llama.cpp"

#: Stands for :func:`default_twins`.
ALL_TWINS = "all"

#: The types that a twin can have. ``convert`` does not offer Q4_0, which holds trits but is not ternary.
TWIN_TYPES = (F16.name, TQ2_0.name, Q4_0.name)


def compared_type(file: GGUFFile) -> str:
    """The type of most ternary weights in a file.

    Raises:
        UsageError: it has no tensors of a type that our kernels run.
    """
    weights = {
        name: sum(math.prod(tensor.shape) for tensor in file.tensors if tensor.type.name == name)
        for name in COMPARED_TYPES
    }
    if not any(weights.values()):
        raise UsageError(
            f"{file.path} has no tensors of type {', '.join(COMPARED_TYPES)}, so there is nothing to "
            f"compare; convert it first: bitexport convert {file.path} OUT.gguf"
        )
    return max(weights, key=lambda name: weights[name])


def is_compared(file: GGUFFile) -> bool:
    """Whether a file has tensors of a type that our kernels run."""
    return any(tensor.type.name in COMPARED_TYPES for tensor in file.tensors)


def default_twins(file: GGUFFile) -> tuple[str, ...]:
    """The twins of a file if the user names none: types that hold its scales."""
    return TWIN_TYPES if compared_type(file) == I2_S.name else (SAME_FILE, F16.name)


def check_twin(file: GGUFFile, type_name: str) -> None:
    """Refuse a twin that cannot be built, before anything is written.

    Raises:
        UsageError: ``type_name`` is unknown, or the file has no tensors that our kernels run.
        UnsupportedError: a tensor's rows do not fit the type.
    """
    compared = compared_type(file)
    offered = [name for name in (SAME_FILE, *TWIN_TYPES) if name != compared]
    if compared == I2_S.name:
        offered.remove(SAME_FILE)
    if type_name not in offered:
        raise UsageError(f"a twin cannot be '{type_name}'; expected some of {','.join(offered)}")
    if type_name == SAME_FILE:
        return
    for tensor in (tensor for tensor in file.tensors if _is_ternary(tensor)):
        if not TYPES[type_name].fits(tensor.shape):
            raise UnsupportedError(
                f"tensor '{tensor.name}' has rows of {tensor.shape[-1]}, which is not a multiple of "
                f"{TYPES[type_name].block}, as {type_name} needs; leave that type out of --compare"
            )


def twin_bytes(file: GGUFFile, type_name: str) -> int:
    """Bytes of a twin's tensors, about the size of its file."""
    if type_name == SAME_FILE:
        return sum(tensor.nbytes for tensor in file.tensors)
    return sum(tensor.spec.nbytes for tensor in _planned(file, type_name))


def build_twin(source: Path, output: Path, type_name: str, progress: Progress = ignore) -> None:
    """Write the twin of a ternary file.

    Args:
        type_name: one of :data:`TWIN_TYPES`.
        progress: called for every piece of a tensor, in bytes of the source.

    Raises:
        UsageError, UnsupportedError: see :func:`check_twin`; or float16 cannot hold a scale.
        GGUFError: a ternary tensor is damaged.
        OutputError: it cannot be written. Nothing is left behind.
    """
    file = read_gguf(source)
    check_twin(file, type_name)
    file_type = {"general.file_type": FILE_TYPES[type_name]}
    twin = GGUFSource(file, _planned(file, type_name), file_type, type=type_name)
    label = f"making the {type_name} twin"
    try:
        convert_source(twin, output, progress=lambda event: progress(replace(event, label=label)))
    except UnsupportedError as error:
        raise UnsupportedError(f"there is no {type_name} twin; leave it out of --compare: {error}") from error


def _is_ternary(tensor: GGUFTensor) -> bool:
    """Whether a tensor gets another type in a twin; embeddings and heads keep theirs."""
    return tensor.type.name in COMPARED_TYPES and tensor.name not in (TOKEN_EMBEDDING, OUTPUT_HEAD)


def _planned(file: GGUFFile, type_name: str) -> list[PlannedTensor[GGUFTensor]]:
    """The twin's tensors: only ternary ones get another type."""
    return [
        PlannedTensor(
            tensor,
            TensorSpec(tensor.name, tensor.shape, TYPES[type_name] if _is_ternary(tensor) else tensor.type),
            ternary=_is_ternary(tensor),
            source_bytes=tensor.nbytes,
        )
        for tensor in file.tensors
    ]
