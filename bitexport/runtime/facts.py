"""What ``bitexport run`` has to know about a file before it opens it, remembered with the file's proof.

A header of 128k tokens takes longer to read, with the packages that it needs, than the model to load; and a
pre-tokenizer that a file does not name takes a second to find. None of it changes while the file does not.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitexport import __version__
from bitexport.errors import BitexportWarning
from bitexport.runtime import proofs


@dataclass(frozen=True)
class Facts:
    """What a header says about a model that generates text, and what it leaves to be assumed.

    Attributes:
        context_length: the context that the model was trained with; 0 if unknown.
        block_size: the tokens of a block that the model fills in at once; 0 for a plain model.
        overrides: metadata that the header lacks.
        warnings: what has been assumed, and what cannot be used, for the user.
    """

    context_length: int
    block_size: int = 0
    overrides: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def warn(self) -> None:
        """Give all warnings."""
        for message in self.warnings:
            warnings.warn(message, BitexportWarning, stacklevel=4)


def facts_of(path: str | os.PathLike[str], *, trial: bool = True, warn: bool = True) -> Facts:
    """Check that a file generates text and that libllama can open it, or remember that it was checked.

    Args:
        path: the GGUF file.
        trial: try a file that is not proven in a child process.
        warn: warn about everything that is assumed; otherwise the caller does, or opens the file by a
            function that does.

    Raises:
        UsageError: the file is for embeddings.
        GGUFError, UnsupportedError, TokenizerError: see :func:`bitexport.runtime.loading.checked_file`.
    """
    facts = _remembered(Path(path)) or _found(Path(path), trial=trial)
    if warn:
        facts.warn()
    return facts


def _remembered(path: Path) -> Facts | None:
    try:
        document = proofs.recall(proofs.identity([path]))
    except OSError:
        return None
    return None if document is None else _from_json(document)


def _from_json(document: Any) -> Facts | None:
    """None for a note of another version, which may find other facts."""
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        length, block = document["context_length"], document["block_size"]
        overrides, notes = document["overrides"], document["warnings"]
        if document["version"] != __version__:
            return None
        texts = [*overrides, *overrides.values(), *notes]
        numbers_are_whole = isinstance(length, int) and isinstance(block, int)
        if numbers_are_whole and all(isinstance(text, str) for text in texts):
            return Facts(length, block, overrides, notes)
    return None


def _found(path: Path, *, trial: bool) -> Facts:
    from bitexport.gguf.diffusion_settings import diffusion_of
    from bitexport.gguf.embedding_settings import check_generates
    from bitexport.gguf.reader import read_gguf
    from bitexport.runtime.chat import template_warning
    from bitexport.runtime.limits import trained_context
    from bitexport.runtime.loading import examined_file
    from bitexport.tokenizer.chat import DEFAULT_KEY, TemplateError, check_template

    check_generates(read_gguf(path))
    diffusion = diffusion_of(read_gguf(path))
    _, overrides, messages = examined_file(path, trial=trial)
    try:
        check_template(read_gguf(path).metadata.get(DEFAULT_KEY, ""))
    except TemplateError as error:
        messages.append(template_warning(str(path), str(error)))
    block_size = 0 if diffusion is None else diffusion.block_size
    facts = Facts(trained_context(path), block_size, overrides, messages)
    parts = read_gguf(path).parts
    name = proofs.identity(parts)
    if len(parts) == 1 and proofs.is_proven(name):
        proofs.remember(name, {"version": __version__, **asdict(facts)})
    return facts
