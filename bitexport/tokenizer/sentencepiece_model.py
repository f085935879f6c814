"""Reads ``tokenizer.model``, the file of a SentencePiece tokenizer.

The file is a protocol buffer, ``ModelProto`` of sentencepiece_model.proto, of which these fields matter:
pieces (1): text (1), score (2), type (3); trainer_spec (2): model_type (3); normalizer_spec (3):
add_dummy_prefix (3), remove_extra_whitespaces (4). The package sentencepiece encodes texts with it, but does
not expose the last three.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitexport.errors import TokenizerError
from bitexport.system.reading import read_regular

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

#: The only kind of model that llama.cpp's kind ``llama`` can encode with.
BPE = 2

#: The other kinds by number.
KINDS = {1: "unigram", 3: "word", 4: "char"}

#: Real files have less than 20 MB.
MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class SentencePieceModel:
    """The content of tokenizer.model.

    Attributes:
        pieces, scores, types: of each id; the numbers of the types are those of ``gguf.TokenType``.
        add_space_prefix: whether a space is added in front of the text.
        processor: the package's own tokenizer.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    add_space_prefix: bool
    processor: SentencePieceProcessor

    def special_ids(self) -> dict[str, int]:
        """Ids by role: bos, eos, unk, pad; those that the model has."""
        ids = {
            "bos": self.processor.bos_id(),
            "eos": self.processor.eos_id(),
            "unk": self.processor.unk_id(),
            "pad": self.processor.pad_id(),
        }
        return {role: int(number) for role, number in ids.items() if number >= 0}


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read tokenizer.model.

    Raises:
        TokenizerError: the package sentencepiece is missing, the file is damaged, or its model is not BPE.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise TokenizerError(
            f"{path.name} without a tokenizer.json needs the Python package sentencepiece, which is not "
            "installed; pip install 'bitexport[sentencepiece]'"
        ) from error
    damaged = f"{path.name}: not a SentencePiece model; download it again"
    try:
        raw = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise TokenizerError(f"{path.name}: {error.strerror}; download it again, as a file") from error
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        processor = SentencePieceProcessor(model_proto=raw)
        for number, value in _fields(raw):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append(piece.get(1, b"").decode("utf-8"))
                scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
                types.append(piece.get(3, 1))
            elif number == 2:
                trainer.update(_fields(value))
            elif number == 3:
                normalizer.update(_fields(value))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise TokenizerError(damaged) from error
    if not pieces or len(pieces) != processor.vocab_size():
        raise TokenizerError(damaged)
    kind = trainer.get(3, 1)
    if kind != BPE:
        raise TokenizerError(
            f"{path.name}: a model of kind {KINDS.get(kind, kind)}; expected BPE, as other kinds are not "
            "supported"
        )
    return SentencePieceModel(pieces, scores, types, bool(normalizer.get(3, 1)), processor)


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer's message: numbers as int, everything else as bytes.

    Raises:
        ValueError: the message is damaged.
    """
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(raw, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(raw):
            raise ValueError("a field ends after the message")
        yield number, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
