"""The two matrices of a GGUF file that are not ternary: the token embedding and the output head."""

from __future__ import annotations

import os
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError
from bitexport.gguf.reader import GGUFFile, GGUFTensor, read_gguf

Matrix = npt.NDArray[np.float32]

TOKEN_EMBEDDING = "token_embd.weight"
OUTPUT_HEAD = "output.weight"


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The token embedding and the output head, dequantized as llama.cpp does.

    Attributes:
        embedding: float32 ``[vocab, hidden]``.
        head: the same; None when the file has none of its own, because it is the embedding.
        embedding_type, head_type: their GGUF types, ``"q6_k"`` say. The head's decides how ggml rounds what
            enters it.
    """

    embedding: Matrix
    head: Matrix | None
    embedding_type: str
    head_type: str


def read_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Read both.

    Raises:
        GGUFError: the file is damaged, or has no embedding, or one of a type that cannot be dequantized.
    """
    file = read_gguf(os.fspath(path))
    tensors = {tensor.name: tensor for tensor in file.tensors}
    if TOKEN_EMBEDDING not in tensors:
        raise GGUFError(f"{file.path} has no tensor {TOKEN_EMBEDDING}; is it a language model?")
    head = tensors.get(OUTPUT_HEAD)
    return Embeddings(
        embedding=_dequantized(file, tensors[TOKEN_EMBEDDING]),
        head=None if head is None else _dequantized(file, head),
        embedding_type=tensors[TOKEN_EMBEDDING].type.name,
        head_type=(head or tensors[TOKEN_EMBEDDING]).type.name,
    )


def _dequantized(file: GGUFFile, tensor: GGUFTensor) -> Matrix:
    try:
        kind = gguf.GGMLQuantizationType(tensor.type.id)
        rows = file.data(tensor).reshape(tensor.shape[0], -1)
        return np.asarray(gguf.quants.dequantize(rows.view(_storage(kind)), kind), dtype=np.float32)
    except (ValueError, NotImplementedError) as error:
        raise GGUFError(
            f"{file.path}: {tensor.name} is {tensor.type.name}, which cannot be read back ({error}); "
            "expected f16, q8_0, q6_k, q5_k or q4_k: convert the checkpoint again"
        ) from error


def _storage(kind: gguf.GGMLQuantizationType) -> type[np.generic]:
    """What the gguf package wants the bytes viewed as."""
    plain: dict[gguf.GGMLQuantizationType, type[np.generic]] = {
        gguf.GGMLQuantizationType.F32: np.float32,
        gguf.GGMLQuantizationType.F16: np.float16,
    }
    return plain.get(kind, np.uint8)
