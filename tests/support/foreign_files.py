"""Whole models as other projects' tools write them: their types, their numbers, and split into parts."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from bitexport.gguf.foreign_types import READABLE
from bitexport.gguf.reader import GGUFTensor, read_gguf
from bitexport.gguf.types import TensorType
from bitexport.gguf.writer import MetadataValue, RawValue, TensorSpec, write_gguf
from tests.support.foreign_packers import PACKS, example
from tests.support.gguf_files import rewritten

KINDS = {kind.name: kind for kind in READABLE}


def foreign_file(
    source: Path,
    target: Path,
    name: str,
    *,
    number: int | None = None,
    metadata: Mapping[str, MetadataValue] = {},
    also: tuple[str, ...] = (),
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A copy of an I2_S model in another project's type, with new trits and scales.

    Args:
        number: of the type in the file, if it is not the type's own.
        also: tensors that get the type as well.

    Returns:
        The trits and scales of each tensor of the type.
    """
    kind = KINDS[name] if number is None else replace(KINDS[name], id=number)
    written: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def change(tensor: GGUFTensor, own: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
        if own.name != "i2_s" and tensor.name not in also:
            return own, data
        rows, columns = tensor.shape
        written[tensor.name] = example(name, rows, columns, seed=len(written))
        return kind, np.frombuffer(PACKS[name](*written[tensor.name]), np.uint8)

    rewritten(source, target, metadata=metadata, change=change)
    return written


def split_by_gguf_py(source: Path, target: Path, tensors: int) -> list[Path]:
    """Split a file as the ``gguf`` package does, ``tensors`` to a part; ``target`` has no ending.

    The package lacks I2_S and Q2_0.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(
        target.with_suffix(".gguf"),
        reader.fields["general.architecture"].contents(),
        split_max_tensors=tensors,
    )
    for key, field in reader.fields.items():
        if key != "general.architecture" and not key.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.glob(f"{target.name}-*-of-*.gguf"))


def split(source: Path, target: Path, tensors: int) -> list[Path]:
    """Split a file of any types into parts of ``tensors`` tensors; ``target`` has no ending."""
    file = read_gguf(source)
    groups = [file.tensors[start : start + tensors] for start in range(0, len(file.tensors), tensors)]
    paths = []
    for number, group in enumerate(groups):
        keys: dict[str, MetadataValue] = {}
        if number == 0:
            keys = {key: RawValue(file.raw(key)) for key in file.metadata if key != "general.architecture"}
        keys["split.no"] = RawValue(struct.pack("<IH", 2, number))
        keys["split.count"] = RawValue(struct.pack("<IH", 2, len(groups)))
        keys["split.tensors.count"] = RawValue(struct.pack("<Ii", 5, len(file.tensors)))
        data = {tensor.name: np.array(file.data(tensor)) for tensor in group}
        specs = [TensorSpec(tensor.name, tensor.shape, tensor.type) for tensor in group]
        paths.append(target.with_name(f"{target.name}-{number + 1:05d}-of-{len(groups):05d}.gguf"))
        write_gguf(
            paths[-1],
            file.metadata["general.architecture"],
            keys,
            specs,
            lambda spec, data=data: [data[spec.name]],  # type: ignore[misc]
        )
    return paths
