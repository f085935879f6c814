"""The two matrices of a GGUF file that are not linear layers: the token embedding and the output head."""

from __future__ import annotations

import os
from dataclasses import dataclass

from bitexport.errors import GGUFError
from bitexport.gguf.dequantize import Matrix, can_dequantize, dequantize
from bitexport.gguf.names import OUTPUT_HEAD, TOKEN_EMBEDDING
from bitexport.gguf.reader import GGUFFile, GGUFTensor, read_gguf


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The token embedding and the output head, dequantized as llama.cpp does.

    Attributes:
        embedding: float32 ``[vocab, hidden]``.
        head: float32 ``[vocab, hidden]``; None if the embedding is also the head.
        embedding_type, head_type: their GGUF types, for example ``"q6_k"``. The head's decides how ggml
            rounds its input.
    """

    embedding: Matrix
    head: Matrix | None
    embedding_type: str
    head_type: str


def read_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Read the token embedding and the output head of a file.

    Raises:
        GGUFError: the file is damaged, has no embedding, or has one of a type that cannot be dequantized.
    """
    file = read_gguf(os.fspath(path))
    tensors = {tensor.name: tensor for tensor in file.tensors}
    if TOKEN_EMBEDDING not in tensors:
        raise GGUFError(f"{file.path} has no tensor {TOKEN_EMBEDDING}; is it a language model?")
    head = tensors.get(OUTPUT_HEAD)
    return Embeddings(
        embedding=_values(file, tensors[TOKEN_EMBEDDING]),
        head=None if head is None else _values(file, head),
        embedding_type=tensors[TOKEN_EMBEDDING].type.name,
        head_type=(head or tensors[TOKEN_EMBEDDING]).type.name,
    )


def _values(file: GGUFFile, tensor: GGUFTensor) -> Matrix:
    if not can_dequantize(tensor.type):
        raise GGUFError(
            f"{file.path}: {tensor.name} is {tensor.type.name}, which cannot be read back; expected f16, "
            "q8_0, q6_k, q5_k, q4_k or a ternary type: convert the checkpoint again"
        )
    return dequantize(file, tensor)
