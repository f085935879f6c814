"""The same model in another type, which an I2_S file is compared with.

Everything but the ternary tensors is copied byte for byte, so that graph, embedding and head are the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bitexport.convert.driver import convert_source
from bitexport.convert.from_gguf import GGUFSource
from bitexport.convert.source import PlannedTensor
from bitexport.errors import UnsupportedError, UsageError
from bitexport.gguf.reader import GGUFFile, GGUFTensor, read_gguf
from bitexport.gguf.types import F16, FILE_TYPES, I2_S, Q4_0, TQ2_0, TYPES
from bitexport.gguf.writer import TensorSpec
from bitexport.progress import Progress, ignore

#: The types that a twin can have. ``convert`` does not offer Q4_0, which holds trits but is not ternary.
TWIN_TYPES = (F16.name, TQ2_0.name, Q4_0.name)


def check_twin(file: GGUFFile, type_name: str) -> None:
    """Refuse a twin that cannot be built, before anything is written.

    Raises:
        UsageError: ``type_name`` is unknown, or the file has no I2_S tensors.
        UnsupportedError: a tensor's rows do not fit the type.
    """
    if type_name not in TWIN_TYPES:
        raise UsageError(f"a twin cannot be '{type_name}'; expected some of {','.join(TWIN_TYPES)}")
    ternary = [tensor for tensor in file.tensors if tensor.type is I2_S]
    if not ternary:
        raise UsageError(
            f"{file.path} has no I2_S tensors, so there is nothing to compare; convert to I2_S first"
        )
    for tensor in ternary:
        if not TYPES[type_name].fits(tensor.shape):
            raise UnsupportedError(
                f"tensor '{tensor.name}' has rows of {tensor.shape[-1]}, which is not a multiple of "
                f"{TYPES[type_name].block}, as {type_name} needs; leave that type out of --compare"
            )


def twin_bytes(file: GGUFFile, type_name: str) -> int:
    """Bytes of a twin's tensors, about the size of its file."""
    return sum(tensor.spec.nbytes for tensor in _planned(file, type_name))


def build_twin(source: Path, output: Path, type_name: str, progress: Progress = ignore) -> None:
    """Write the twin of an I2_S file.

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
    convert_source(twin, output, progress=lambda event: progress(replace(event, label=label)))


def _planned(file: GGUFFile, type_name: str) -> list[PlannedTensor[GGUFTensor]]:
    """The twin's tensors: only those of type I2_S get another type."""
    return [
        PlannedTensor(
            tensor,
            TensorSpec(tensor.name, tensor.shape, TYPES[type_name] if tensor.type is I2_S else tensor.type),
            ternary=tensor.type is I2_S,
            source_bytes=tensor.nbytes,
        )
        for tensor in file.tensors
    ]
