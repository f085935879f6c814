"""The two matrices of a GGUF file that are not ternary: the token embedding and the output head."""

from __future__ import annotations

import os

import gguf
import numpy as np
import numpy.typing as npt

from bitexport.errors import GGUFError
from bitexport.gguf.reader import GGUFFile, read_gguf

Matrix = npt.NDArray[np.float32]

TOKEN_EMBEDDING = "token_embd.weight"
OUTPUT_HEAD = "output.weight"


def read_embeddings(path: str | os.PathLike[str]) -> tuple[Matrix, Matrix | None]:
    """The token embedding and the output head as float32 ``[vocab, hidden]``, dequantized as llama.cpp does.

    The head is None when the file has none of its own, because it is the embedding.

    Raises:
        GGUFError: the file is damaged, or has no embedding, or one of a type that cannot be dequantized.
    """
    file = read_gguf(os.fspath(path))
    embedding = _dequantized(file, TOKEN_EMBEDDING)
    if embedding is None:
        raise GGUFError(f"{file.path} has no tensor {TOKEN_EMBEDDING}; is it a language model?")
    return embedding, _dequantized(file, OUTPUT_HEAD)


def _dequantized(file: GGUFFile, name: str) -> Matrix | None:
    tensor = next((tensor for tensor in file.tensors if tensor.name == name), None)
    if tensor is None:
        return None
    try:
        kind = gguf.GGMLQuantizationType(tensor.type.id)
        rows = file.data(tensor).reshape(tensor.shape[0], -1)
        return np.asarray(gguf.quants.dequantize(rows.view(_storage(kind)), kind), dtype=np.float32)
    except (ValueError, NotImplementedError) as error:
        raise GGUFError(
            f"{file.path}: {name} is {tensor.type.name}, which cannot be read back ({error}); "
            "expected f16, q8_0 or q6_k: convert the checkpoint again"
        ) from error


def _storage(kind: gguf.GGMLQuantizationType) -> type[np.generic]:
    """What the gguf package wants the bytes viewed as."""
    plain: dict[gguf.GGMLQuantizationType, type[np.generic]] = {
        gguf.GGMLQuantizationType.F32: np.float32,
        gguf.GGMLQuantizationType.F16: np.float16,
    }
    return plain.get(kind, np.uint8)
