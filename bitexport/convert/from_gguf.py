"""A GGUF file as the source of a conversion: its ternary tensors get another type, everything else stays.

A linear layer is a matrix ``blk.N.<...>.weight``, or the matrices of all experts, except for those that
llama.cpp never quantizes, such as a router. Where the file has ternary types, those tensors are the
ternary ones; in a file of floats, every linear layer must contain ternary values, except for those that the
file itself lists as kept in float (``bitexport.kept_float``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.convert.choices import TERNARY_TYPES, check_fits, straddling_warnings, ternary_kind
from bitexport.convert.encoding import TensorStatistics, encode_float, encode_ternary
from bitexport.convert.gguf_tensors import FLOAT_TYPES, named, read_scales, unpack
from bitexport.convert.source import KEPT_FLOAT_KEY, PlannedTensor, SourceSummary, main_type, source_keys
from bitexport.convert.tokenizer_check import check_loads
from bitexport.errors import GGUFError, OutputError, UnsupportedError
from bitexport.gguf import splits
from bitexport.gguf.checks import check_rotation
from bitexport.gguf.dequantize import can_dequantize, dequantize_rows
from bitexport.gguf.foreign_types import ROW_SCALE_LAYOUT, layout_key
from bitexport.gguf.names import NEVER_QUANTIZED, OUTPUT_HEAD, TOKEN_EMBEDDING
from bitexport.gguf.packers import FOREIGN_UNPACKERS
from bitexport.gguf.reader import Array, GGUFFile, GGUFTensor, read_gguf
from bitexport.gguf.types import F16, FILE_TYPES, I2_S, TYPES, TensorType
from bitexport.gguf.writer import ALIGNMENT, MetadataValue, RawValue, TensorSpec
from bitexport.health import Health
from bitexport.progress import Progress, ProgressEvent, ignore, patient
from bitexport.tokenizer.missing_pre_tokenizer import MODEL_KEY, PRE_KEY, derived_pre, lacks_pre

#: Bytes in memory at once of a tensor that is only copied.
CHUNK_BYTES = 8 * 1024 * 1024

LINEAR_LAYER = re.compile(r"blk\.\d+\..+\.weight")

#: Types that hold nothing but trits and scales.
TRIT_TYPES = (*(name for name in TERNARY_TYPES if name not in FLOAT_TYPES), *FOREIGN_UNPACKERS)

#: The difference between the numbers of +1 and -1, as a fraction of both, that no trained model is known to
#: exceed.
MAX_EXCESS = 0.05

#: With fewer nonzero trits than this, the difference is too uncertain to judge.
MIN_SIGNS = 1 << 20

FileTensor = PlannedTensor[GGUFTensor]


def check_another_file(file: GGUFFile, output: Path, target: Path) -> None:
    """Raise OutputError if the output is the file being converted.

    Args:
        output: as the user gave it.
        target: the file that would be written, links followed.
    """
    if target in [part.resolve() for part in file.parts]:
        raise OutputError(f"{output} is the file being converted; expected another name")


def plan_gguf(
    file: GGUFFile,
    type: str,
    embed_type: str | None,
    pre_tokenizer: str | None,
    progress: Progress = ignore,
) -> GGUFSource:
    """Plan the conversion of a GGUF file; arguments as in :func:`bitexport.convert.convert`.

    Raises:
        GGUFError: the file is not a language model.
        UnsupportedError: it is not ternary, is a part of a model, or a type cannot hold a tensor.
    """
    embed_kind = TYPES[embed_type] if embed_type else None
    tensors, warnings = _plan_tensors(file, type, embed_kind, patient(progress))
    main = (main_type(tensors) or F16).name
    wanted: dict[str, MetadataValue] = {"general.file_type": FILE_TYPES[main]}
    if "general.quantization_version" not in file.metadata:
        wanted["general.quantization_version"] = 2
    if "bitexport.ternary_type" in file.metadata:
        wanted["bitexport.ternary_type"] = main
    if embed_type and "bitexport.embedding_type" in file.metadata:
        wanted["bitexport.embedding_type"] = embed_type
    if not any(key.startswith("general.source.") for key in file.metadata):
        wanted.update(source_keys(file.path))
    pre, pre_warnings = _pre_tokenizer(file, pre_tokenizer)
    if pre is not None:
        wanted[PRE_KEY] = pre
    warnings += pre_warnings
    return GGUFSource(file, tensors, wanted, type=type, pre_tokenizer=pre_tokenizer, warnings=warnings)


class GGUFSource:
    """A :class:`~bitexport.convert.source.Source`: the tensors of a file, converted or copied."""

    def __init__(
        self,
        file: GGUFFile,
        tensors: Sequence[FileTensor],
        wanted: Mapping[str, MetadataValue],
        *,
        type: str,
        pre_tokenizer: str | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Prepare the conversion of ``tensors``.

        Args:
            wanted: the metadata to write; all other keys stay as they are in the file.
            type: of the ternary tensors, for the report.
            pre_tokenizer: one that the user gave, which is checked against llama.cpp.
            warnings: those of the plan.
        """
        self.file = file
        self.pre_tokenizer = pre_tokenizer
        self.architecture = str(file.metadata.get("general.architecture", ""))
        self.tensors = tensors
        self.extra_tensors: Mapping[str, npt.NDArray[np.float32]] = {}
        self.warnings = warnings
        self.health = Health()
        self.metadata: Mapping[str, MetadataValue]
        self.metadata, changed = _metadata(file, wanted)
        self.summary = _summary(file, tensors, wanted, type, changed)
        #: The numbers of weights that are +1 and -1 so far.
        self._plus = 0
        self._minus = 0

    def encode_tensor(self, tensor: FileTensor, statistics: TensorStatistics) -> Iterator[npt.NDArray[Any]]:
        """The bytes of one tensor, in pieces.

        Raises:
            GGUFError: it is damaged.
            UnsupportedError: it is not ternary, or the output type cannot hold it.
        """
        if tensor.ternary:
            yield self._encode_ternary(tensor, statistics)
        elif tensor.spec.type is tensor.origin.type:
            yield from self._copy(tensor.origin)
        else:
            for values in dequantize_rows(self.file, tensor.origin):
                yield encode_float(tensor.spec, values, statistics)

    def _encode_ternary(self, tensor: FileTensor, statistics: TensorStatistics) -> npt.NDArray[np.uint8]:
        with named(self.file, tensor.origin):
            weights = unpack(self.file, tensor.origin)
            packed = encode_ternary(tensor.spec, weights, statistics)
        self.health.ternary(tensor.spec.name, weights)
        used = statistics.weights - statistics.zeros
        total = int(weights.trits.sum(dtype=np.int64))
        self._plus += (used + total) // 2
        self._minus += (used - total) // 2
        return packed

    def _copy(self, tensor: GGUFTensor) -> Iterator[npt.NDArray[np.uint8]]:
        """A tensor's bytes, read rather than mapped: mapped pages would count as this process's memory."""
        with tensor.path.open("rb") as stream:
            stream.seek(tensor.offset)
            for start in range(0, tensor.nbytes, CHUNK_BYTES):
                piece = stream.read(min(CHUNK_BYTES, tensor.nbytes - start))
                yield np.frombuffer(piece, dtype=np.uint8)

    def check_written(self, path: Path) -> list[str]:
        """Read the header, and check that llama.cpp knows a pre-tokenizer that the user gave."""
        read_gguf(path)
        return [] if self.pre_tokenizer is None else check_loads(path, self.pre_tokenizer)

    def final_warnings(self, statistics: Mapping[str, TensorStatistics]) -> list[str]:
        """Warnings about what was rounded, and about a layout that may not be I2_S."""
        found = [
            f"'{tensor.spec.name}' was already rounded to {tensor.origin.type.name} and is rounded again, to "
            f"{tensor.spec.type.name}; converting the checkpoint itself loses less"
            for tensor in self.tensors
            if tensor.spec.type is not tensor.origin.type
            and not tensor.ternary
            and tensor.origin.type.name not in (*FLOAT_TYPES, *FOREIGN_UNPACKERS)
        ]
        rounding = max((each.scale_rounding for each in statistics.values()), default=0.0)
        if rounding:
            found.append(
                f"scales were rounded to float16, by up to {rounding:.2g} of their value: trits are the same,"
                " but converting back does not give the same file"
            )
        signs = self._plus + self._minus
        has_i2_s = any(tensor.ternary and tensor.origin.type is I2_S for tensor in self.tensors)
        if has_i2_s and signs >= MIN_SIGNS and abs(self._plus - self._minus) / signs > MAX_EXCESS:
            found.append(
                f"{self._plus:,} weights are +1 and {self._minus:,} are -1, which is unusual for a trained "
                "model: perhaps it is another layout that shares type number 36; check the output with "
                "bitexport run"
            )
        return found


def _plan_tensors(
    file: GGUFFile, type: str, embed_kind: TensorType | None, progress: Progress
) -> tuple[list[FileTensor], list[str]]:
    """Every tensor's type in the output, checked before a byte is written; and warnings."""
    check_rotation(file)
    layers = {tensor.name: tensor for tensor in file.tensors if _is_linear_layer(tensor)}
    head = next((tensor for tensor in file.tensors if tensor.name == OUTPUT_HEAD), None)
    if not layers:
        raise GGUFError(f"{file.path.name} has no linear layers (blk.N.*.weight); is it a language model?")
    packed = any(tensor.type.name in TRIT_TYPES for tensor in layers.values())
    listed = set(file.elements(KEPT_FLOAT_KEY)) if KEPT_FLOAT_KEY in file.metadata else set()
    ternary = {name for name, tensor in layers.items() if name not in listed and _is_ternary(tensor, packed)}
    if head is not None and head.type.name in TRIT_TYPES and embed_kind is None:
        ternary.add(head.name)  # as convert writes a packed head
    tensors = []
    done, total = 0, sum(tensor.nbytes for tensor in file.tensors)
    for tensor in file.tensors:
        progress(ProgressEvent(done, total, "B", f"looking for scales: {tensor.name}"))
        done += tensor.nbytes
        wanted, scales = tensor.type, None
        if tensor.name in ternary:
            scales = read_scales(file, tensor)
            wanted = ternary_kind(tensor.name, tensor.shape, scales, type)
        elif tensor.name in (TOKEN_EMBEDDING, OUTPUT_HEAD):
            wanted = embed_kind or (F16 if tensor.type.name in FOREIGN_UNPACKERS else tensor.type)
        _check_type(tensor, wanted, tensor.name in ternary)
        spec = TensorSpec(tensor.name, tensor.shape, wanted)
        tensors.append(PlannedTensor(tensor, spec, tensor.name in ternary, tensor.nbytes, scales))
    if not ternary:
        raise UnsupportedError(
            f"{file.path.name} is a float model, as convert --float writes it: none of its linear layers is "
            "ternary; expected a ternary model: convert the checkpoint that was trained as one"
        )
    warnings = []
    if kept := [name for name in layers if name not in listed and name not in ternary]:
        warnings.append(
            f"{len(kept)} linear layers are not of a ternary type and stay unchanged: {', '.join(kept[:3])}"
            f"{', ...' if len(kept) > 3 else ''}"
        )
    changed = [tensor.spec for tensor in tensors if tensor.spec.type is not tensor.origin.type]
    if type == I2_S.name or changed:
        warnings += straddling_warnings([tensor.spec for tensor in tensors])
    return tensors, warnings


def _is_linear_layer(tensor: GGUFTensor) -> bool:
    if tensor.name in (TOKEN_EMBEDDING, OUTPUT_HEAD):
        return False
    # whatever its name, a tensor of a type that holds nothing but trits is one
    if tensor.type.name in TRIT_TYPES:
        return True
    layer = LINEAR_LAYER.fullmatch(tensor.name) and not NEVER_QUANTIZED.search(tensor.name)
    return bool(layer) and len(tensor.shape) > 1


def _is_ternary(layer: GGUFTensor, packed: bool) -> bool:
    """Whether a linear layer is to be read as trits.

    Args:
        packed: the file has types that hold nothing but trits, so that its floats are not ternary.

    Raises:
        UnsupportedError: the file has no such types, and the layer is not float either.
    """
    if layer.type.name in (TRIT_TYPES if packed else FLOAT_TYPES):
        return True
    if not packed:
        raise UnsupportedError(
            f"tensor '{layer.name}' is {layer.type.name}, which is not ternary; expected "
            f"{', '.join((*TRIT_TYPES, *FLOAT_TYPES))}: convert the checkpoint instead"
        )
    return False


def _check_type(tensor: GGUFTensor, kind: TensorType, ternary: bool) -> None:
    if kind is tensor.type:
        return
    check_fits(tensor.name, tensor.shape, kind, embedding=not ternary)
    if not ternary and not can_dequantize(tensor.type):
        raise UnsupportedError(
            f"'{tensor.name}' is {tensor.type.name}, which cannot be read back; leave out --embed-type"
        )


def _metadata(
    file: GGUFFile, wanted: Mapping[str, MetadataValue]
) -> tuple[dict[str, MetadataValue], list[str]]:
    """The keys of the output, and which of them differ from the source's, as clauses."""
    found: dict[str, MetadataValue] = {
        key: RawValue(file.raw(key)) for key in file.metadata if key != "general.architecture"
    }
    changed = []
    for key, value in wanted.items():
        before = file.metadata.get(key, "missing")
        if before != value:
            found[key] = value
            changed.append(f"{key} {before} -> {value}")
    for key in _keys_of_storage(file):
        del found[key]
        changed.append(f"{key} {file.metadata[key]} -> removed")
    alignment = file.metadata.get("general.alignment", ALIGNMENT)
    if alignment != ALIGNMENT:
        del found["general.alignment"]
        changed.append(f"general.alignment {alignment} -> {ALIGNMENT}")
    return found, changed


def _keys_of_storage(file: GGUFFile) -> list[str]:
    """The keys that describe how the source is stored, which the output is not."""
    layout = layout_key(file.metadata)
    found = [key for key in splits.KEYS if key in file.metadata]
    return [*found, layout] if file.metadata.get(layout) == ROW_SCALE_LAYOUT else found


def _summary(
    file: GGUFFile,
    tensors: Sequence[FileTensor],
    wanted: Mapping[str, MetadataValue],
    type: str,
    changed: list[str],
) -> SourceSummary:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    embedding = next((tensor.spec for tensor in tensors if tensor.spec.name == TOKEN_EMBEDDING), None)
    return SourceSummary(
        input_bytes=sum(tensor.source_bytes for tensor in tensors),
        packing=" and ".join(sorted({tensor.origin.type.name for tensor in tensors if tensor.ternary})),
        type=type,
        embed_type=embedding.type.name if embedding else "none",
        tokenizer=str(file.metadata.get(MODEL_KEY, "none")),
        pre_tokenizer=str(wanted.get(PRE_KEY, file.metadata.get(PRE_KEY, "none"))),
        tokens=tokens.length if isinstance(tokens, Array) else 0,
        padded_tokens=0,
        changed=changed,
    )


def _pre_tokenizer(file: GGUFFile, given: str | None) -> tuple[str | None, list[str]]:
    """The pre-tokenizer to write, None if the file's own stays; and warnings."""
    if given is not None:
        return given, []
    if not lacks_pre(file):
        return None, []
    derived = derived_pre(file)
    if derived is None:
        return None, [
            f"{file.path.name} names no pre-tokenizer, and its vocabulary is unknown: the output names none "
            "either, and will not load; give llama.cpp's name for it with --pre-tokenizer"
        ]
    return derived, [
        f"{file.path.name} names no pre-tokenizer; '{derived}' is written, which llama.cpp's table lists for "
        "this vocabulary"
    ]
