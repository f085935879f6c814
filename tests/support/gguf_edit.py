"""Copies of GGUF files with other keys or tensors, made with our own reader and writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bitexport.gguf.reader import GGUFTensor, read_gguf
from bitexport.gguf.types import TensorType
from bitexport.gguf.writer import MetadataValue, RawValue, TensorSpec, write_gguf

#: a tensor, its type and its bytes; returns what they are to be.
Change = Callable[[GGUFTensor, TensorType, np.ndarray], tuple[TensorType, np.ndarray]]


def rewritten(
    source: Path,
    target: Path,
    *,
    metadata: Mapping[str, MetadataValue] = {},
    drop: Sequence[str] = (),
    architecture: str | None = None,
    change: Change = lambda _, kind, data: (kind, data),
) -> Path:
    """A copy of ``source``; with another ``architecture`` its keys change their prefix too."""
    file = read_gguf(source)
    old = file.metadata["general.architecture"]
    new = architecture or old
    keys: dict[str, MetadataValue] = {
        key.replace(f"{old}.", f"{new}.", 1) if key.startswith(f"{old}.") else key: RawValue(file.raw(key))
        for key in file.metadata
        if key not in ("general.architecture", *drop)
    }
    keys.update(metadata)
    data: dict[str, np.ndarray] = {}
    specs = []
    for tensor in file.tensors:
        kind, data[tensor.name] = change(tensor, tensor.type, np.array(file.data(tensor)))
        specs.append(TensorSpec(tensor.name, tensor.shape, kind))
    write_gguf(target, new, keys, specs, lambda spec: [data[spec.name]], force=True)
    return target


def as_microsoft_writes(source: Path, target: Path) -> Path:
    """What their converter makes of it: no pre-tokenizer, the scale once, its old architecture's name."""

    def once(_: GGUFTensor, kind: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
        if kind.name == "i2_s":
            data[-28:] = np.arange(28)  # nothing that anyone reads
        return kind, data

    ours = [key for key in read_gguf(source).metadata if key.startswith("bitexport.")]
    drop = ["tokenizer.ggml.pre", "tokenizer.ggml.add_eos_token", *ours]
    return rewritten(source, target, architecture="bitnet-25", drop=drop, change=once)
