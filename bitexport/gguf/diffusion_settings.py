"""How a file says that its model is one of block diffusion.

``tokenizer.ggml.mask_token_id`` and ``diffusion.shift_logits`` are llama.cpp's own keys, which its converters
write for Dream and LLaDA. The size of a block has no key there: ours is ``bitexport.diffusion.block_size``,
and a file with it is decoded block by block.
"""

from __future__ import annotations

from bitexport.checkpoint.block_diffusion import MAX_BLOCK, BlockDiffusion
from bitexport.errors import GGUFError
from bitexport.gguf.reader import GGUFFile
from bitexport.gguf.writer import MetadataValue

BLOCK_SIZE = "bitexport.diffusion.block_size"
SHIFT = "diffusion.shift_logits"
MASK = "tokenizer.ggml.mask_token_id"

_TOKENS = "tokenizer.ggml.tokens"


def diffusion_metadata(settings: BlockDiffusion) -> dict[str, MetadataValue]:
    """The GGUF keys of a model of block diffusion."""
    return {
        BLOCK_SIZE: settings.block_size,
        SHIFT: settings.token_shift,
        MASK: settings.mask_token_id,
    }


def diffusion_of(file: GGUFFile) -> BlockDiffusion | None:
    """A file's settings; None if its model is not one of block diffusion.

    Raises:
        GGUFError: a key is missing or invalid.
    """
    size = file.metadata.get(BLOCK_SIZE)
    if size is None:
        return None
    mask, shift = file.metadata.get(MASK), file.metadata.get(SHIFT, True)
    name = file.path.name
    if not _is_integer(size) or not 2 <= size <= MAX_BLOCK:
        raise GGUFError(f"{name}: {BLOCK_SIZE} is {size!r}; expected 2 to {MAX_BLOCK}")
    if mask is None:
        raise GGUFError(
            f"{name} is a model of block diffusion ({BLOCK_SIZE} is {size}) without a mask token; expected "
            f"{MASK}: convert the checkpoint again"
        )
    tokens = getattr(file.metadata.get(_TOKENS), "length", None)
    if not _is_integer(mask) or mask < 0 or (tokens is not None and mask >= tokens):
        raise GGUFError(
            f"{name}: {MASK} is {mask!r}, but the vocabulary has {tokens} tokens; expected one of them"
        )
    if not isinstance(shift, bool):
        raise GGUFError(f"{name}: {SHIFT} is {shift!r}; expected true or false")
    return BlockDiffusion(size, mask, shift)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
