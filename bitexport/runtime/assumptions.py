"""What a foreign file leaves open, and what is assumed in its place: said aloud, or the file is refused."""

from __future__ import annotations

from bitexport.errors import TokenizerError
from bitexport.gguf.reader import GGUFFile
from bitexport.tokenizer.missing_pre_tokenizer import PRE_KEY, derived_pre, lacks_pre

#: names of architectures that are others under an old name.
OLD_NAMES = {"bitnet-25": "bitnet-b1.58"}


def assumptions(file: GGUFFile) -> tuple[dict[str, str], list[str]]:
    """What libllama is to be told beside the file, as metadata, and a warning for each thing assumed.

    Raises:
        TokenizerError: nothing says how text is split, and the vocabulary is unknown.
    """
    told: dict[str, str] = {}
    warnings: list[str] = []
    architecture = file.metadata.get("general.architecture")
    if architecture in OLD_NAMES:
        warnings.append(
            f"{file.path.name}: architecture '{architecture}' is run as '{OLD_NAMES[architecture]}', of "
            "which it is an old name"
        )
    if lacks_pre(file):
        name = derived_pre(file)
        if name is None:
            raise TokenizerError(
                f"{file.path.name} does not say how its tokenizer splits text ({PRE_KEY}), and its "
                "vocabulary is none that llama.cpp's table knows; a guess would give other tokens than the "
                "model was trained with: write the name into a copy with bitexport convert FILE.gguf "
                "COPY.gguf --pre-tokenizer NAME"
            )
        told[PRE_KEY] = name
        warnings.append(
            f"{file.path.name} does not say how its tokenizer splits text ({PRE_KEY}); '{name}' is assumed, "
            "with which llama.cpp's table knows this vocabulary"
        )
    return told, warnings
