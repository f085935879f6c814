"""What decoding in blocks needs of a file and of the options, with a session and with a loaded model."""

from __future__ import annotations

import os

from bitexport.blocks import TokenChoice
from bitexport.checkpoint.block_diffusion import BlockDiffusion
from bitexport.errors import UsageError
from bitexport.gguf.diffusion_settings import BLOCK_SIZE, diffusion_of
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.sampling import DEFAULT_SAMPLING, Sampling


def check_blocks(
    path: str | os.PathLike[str], sampling: Sampling = DEFAULT_SAMPLING, *, instead: str
) -> BlockDiffusion:
    """The settings of a file that is decoded in blocks, with these options.

    Args:
        path: the GGUF file.
        sampling: how tokens are chosen.
        instead: what decodes the file token by token, for the messages.

    Raises:
        UsageError: the file is a plain model or has sliding windows, or an option needs the text in order.
        GGUFError: the file is damaged, or a setting is missing or invalid.
    """
    file = read_gguf(os.fspath(path))
    found = diffusion_of(file)
    if found is None:
        raise UsageError(
            f"{path} is a plain model: it has no {BLOCK_SIZE}, and was not trained to fill in blocks; "
            f"decode it token by token, with {instead}"
        )
    window = f"{file.metadata.get('general.architecture')}.attention.sliding_window"
    if file.metadata.get(window):
        raise UsageError(
            f"{path}: {window} is {file.metadata[window]}; blocks are decoded only with attention to the "
            f"whole text: use {instead}"
        )
    for option, given in (
        ("a grammar", bool(sampling.grammar)),
        ("a repeat penalty", sampling.repeat_penalty != 1),
    ):
        if given:
            raise UsageError(
                f"{option} needs the tokens in order, and a block is not filled in order; leave it out, or "
                f"use {instead}"
            )
    return found


def token_choice(sampling: Sampling) -> TokenChoice:
    """Chooses tokens of a block as ``sampling`` says."""
    return TokenChoice(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed)
