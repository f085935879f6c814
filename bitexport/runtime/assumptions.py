"""Fills in what other converters' files leave out, with a warning, or rejects the file."""

from __future__ import annotations

from bitexport.errors import TokenizerError
from bitexport.gguf.reader import GGUFFile
from bitexport.tokenizer.missing_pre_tokenizer import PRE_KEY, derived_pre, lacks_pre

#: Architectures by their old names.
OLD_NAMES = {"bitnet-25": "bitnet-b1.58"}


def assumptions(file: GGUFFile) -> tuple[dict[str, str], list[str]]:
    """Metadata overrides for libllama, and a warning for each assumption.

    Raises:
        TokenizerError: the file names no pre-tokenizer, and its vocabulary is unknown.
    """
    overrides: dict[str, str] = {}
    warnings: list[str] = []
    architecture = file.metadata.get("general.architecture")
    if architecture in OLD_NAMES:
        warnings.append(
            f"{file.path.name}: architecture '{architecture}' is run as '{OLD_NAMES[architecture]}', its "
            "current name"
        )
    if lacks_pre(file):
        name = derived_pre(file)
        if name is None:
            raise TokenizerError(
                f"{file.path.name} does not name its pre-tokenizer ({PRE_KEY}), and its vocabulary is not in "
                "llama.cpp's table; a guess could give other tokens than the model was trained with: write "
                "the name into a copy with bitexport convert FILE.gguf COPY.gguf --pre-tokenizer NAME"
            )
        overrides[PRE_KEY] = name
        warnings.append(
            f"{file.path.name} does not name its pre-tokenizer ({PRE_KEY}); '{name}' is assumed, which "
            "llama.cpp's table lists for this vocabulary"
        )
    return overrides, warnings
