"""The cost of a token in terms of weights: bytes to read and multiply-adds to do."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from bitexport.gguf.names import OUTPUT_HEAD, TOKEN_EMBEDDING
from bitexport.gguf.reader import GGUFTensor, read_gguf
from bitexport.runtime.ggml import cpu_library

_LAYER_MATRIX = re.compile(r"blk\.\d+\..*\.weight")


@dataclass(frozen=True, slots=True)
class TokenCost:
    """The cost of decoding one token; of a mixture of experts, that of the experts it uses.

    Attributes:
        file_bytes: bytes of the weights in the file: all tensors but an embedding that is only looked up.
        memory_bytes: bytes that the kernels read, in the layout in memory, repacked or not.
        multiply_adds: one for every weight of the layers' matrices (the ternary ones, or the same in another
            type). The head, attention and norms are not counted: they do not run on the ternary kernels, and
            only the last token of a prompt needs the head.
    """

    file_bytes: int
    memory_bytes: int
    multiply_adds: int


def token_cost(path: str | os.PathLike[str]) -> TokenCost:
    """Compute the cost from a file's tensors.

    Raises:
        GGUFError: the file is missing or damaged.
        NativeLibraryError: our library is missing.
    """
    file = read_gguf(os.fspath(path))
    tensors = file.tensors
    used = file.metadata.get(f"{file.metadata.get('general.architecture')}.expert_used_count")

    def of_one_token(tensor: GGUFTensor, amount: int) -> int:
        if len(tensor.shape) != 3 or not isinstance(used, int):
            return amount
        return amount * used // tensor.shape[0]

    untied = any(tensor.name == OUTPUT_HEAD for tensor in tensors)
    read = [tensor for tensor in tensors if not (untied and tensor.name == TOKEN_EMBEDDING)]
    return TokenCost(
        file_bytes=sum(of_one_token(tensor, tensor.nbytes) for tensor in read),
        memory_bytes=sum(of_one_token(tensor, _bytes_in_memory(tensor)) for tensor in read),
        multiply_adds=sum(
            of_one_token(tensor, math.prod(tensor.shape)) for tensor in read if _is_layer_matrix(tensor)
        ),
    )


def _bytes_in_memory(tensor: GGUFTensor) -> int:
    if len(tensor.shape) not in (2, 3):
        return tensor.nbytes
    *experts, rows, columns = tensor.shape
    read = int(cpu_library().bitexport_bytes_read(tensor.type.id, rows, columns))
    return math.prod(experts) * read or tensor.nbytes


def _is_layer_matrix(tensor: GGUFTensor) -> bool:
    return len(tensor.shape) in (2, 3) and _LAYER_MATRIX.fullmatch(tensor.name) is not None
