"""Writes a model card: the facts of a GGUF file, what was measured of it, and blanks for the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitexport
from bitexport.convert.source import COMMIT_KEY, REPOSITORY_KEY
from bitexport.gguf.checks import check_foreign
from bitexport.gguf.dequantize import BLOCK_TERNARY_TYPES
from bitexport.gguf.embedding_settings import settings_of
from bitexport.gguf.fingerprint import fingerprint
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.gguf.types import I2_S
from bitexport.hub import HubSource
from bitexport.sharing.measurements import read_document, readable_bytes, section
from bitexport.sharing.runtimes import lacking_upstream

#: Marks what the author of the card has to fill in.
BLANK = "FILL IN"

#: The types that hold trits.
TERNARY = (I2_S.name, *BLOCK_TERNARY_TYPES)


@dataclass(frozen=True, slots=True)
class Card:
    """A model card.

    Attributes:
        text: Markdown, with a YAML header.
        blanks: what has to be filled in, such as ``license``.
    """

    text: str
    blanks: tuple[str, ...]


def card(
    gguf: str | Path,
    *,
    reports: Sequence[str | Path | Mapping[str, Any]] = (),
    repo: str | None = None,
    license: str | None = None,  # named after the key of the header
    base_model: str | None = None,
) -> Card:
    """Write the card of a GGUF file. It has no figure that was not measured.

    Args:
        gguf: the file; of a split model, the first part.
        reports: what ``parity``, ``bench`` and ``eval`` printed with ``--json``: files, or the documents.
        repo: ``OWNER/REPO`` where the file will be, for the command that runs it.
        license: the identifier of the licence; if None, what the file says, or a blank.
        base_model: ``OWNER/REPO`` of the model that was converted; if None, what the file says, or a blank.

    Raises:
        GGUFError: the file is damaged.
        UnsupportedError: it is of another project, and has to be converted first.
        UsageError: a report is of another file, of another command, or of a parity that failed.
    """
    file = read_gguf(gguf)
    check_foreign(file)
    digest = fingerprint(gguf)
    documents = [
        (str(each), read_document(Path(each))) if isinstance(each, (str, Path)) else ("a report", each)
        for each in reports
    ]
    sections = [section(document, name, digest) for name, document in documents]
    license = license or _text(file, "general.license")
    base_model = base_model or _text(file, REPOSITORY_KEY)
    blanks = [key for key, value in (("license", license), ("base_model", base_model)) if value is None]
    parts = [
        _header(file, license, base_model),
        f"# {_text(file, 'general.name') or file.path.stem}\n",
        _introduction(file, base_model),
        _usage(file, repo),
        _facts(file),
        *sections,
    ]
    if not sections:
        parts.append(f"## Measurements\n\n{BLANK}: nothing was measured for this card.\n")
        blanks.append("measurements")
    parts.append(f"Written by bitexport {bitexport.__version__}.\n")
    return Card("\n".join(parts), tuple(blanks))


def _header(file: GGUFFile, license: str | None, base_model: str | None) -> str:
    embeds = settings_of(file) is not None
    lines = [
        "library_name: gguf",
        f"pipeline_tag: {'feature-extraction' if embeds else 'text-generation'}",
        _entry("license", license, "for example mit"),
        _entry("base_model", base_model, "OWNER/REPO of the model that was converted"),
    ]
    if base_model is not None:
        lines.append("base_model_relation: quantized")
    kinds = sorted({tensor.type.name for tensor in file.tensors if tensor.type.name in TERNARY})
    tags = ["gguf", "ternary", "bitnet", *(kind.replace("_", "-") for kind in kinds), "bitexport"]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---\n"])


def _entry(key: str, value: str | None, expected: str) -> str:
    """A line of the header; a blank is a comment, so that the header stays valid."""
    # JSON is YAML: it quotes what would be something else than text
    return f"# {key}: {BLANK}, {expected}" if value is None else f"{key}: {json.dumps(value)}"


def _introduction(file: GGUFFile, base_model: str | None) -> str:
    origin = f"[{base_model}]({_repo_url(file, base_model)})" if base_model else f"a model ({BLANK}: which)"
    commit = _text(file, COMMIT_KEY)
    at = f", commit {commit}" if commit and base_model == _text(file, REPOSITORY_KEY) else ""
    return f"A ternary GGUF file, made from {origin}{at} with bitexport.\n"


def _repo_url(file: GGUFFile, base_model: str) -> str:
    known = _text(file, "general.source.repo_url")
    return known if known and known.endswith(f"/{base_model}") else HubSource(base_model, "").url


def _usage(file: GGUFFile, repo: str | None) -> str:
    place = f"{repo}:{file.path.name}" if repo else file.path.name
    command = (
        f'bitexport embed {place} --text "Hello"'
        if settings_of(file) is not None
        else f'bitexport run {place} --prompt "Once upon a time"'
    )
    return f"## Use\n\n    {command}\n\n{_runtimes(file)}\n"


def _runtimes(file: GGUFFile) -> str:
    if lacking := lacking_upstream(file):
        return f"It needs bitexport's llama.cpp: upstream llama.cpp lacks {' and '.join(lacking)}."
    architecture = file.metadata.get("general.architecture")
    return f"Upstream llama.cpp runs it, too: it has the architecture ({architecture}) and the tensor types."


def _facts(file: GGUFFile) -> str:
    types: dict[str, list[int]] = {}
    for tensor in file.tensors:
        counts = types.setdefault(tensor.type.name, [0, 0, 0])
        for index, value in enumerate((1, math.prod(tensor.shape), tensor.nbytes)):
            counts[index] += value
    rows = [
        f"| {kind} | {tensors} | {weights:,} | {readable_bytes(nbytes)} | {8 * nbytes / weights:.3f} |"
        for kind, (tensors, weights, nbytes) in sorted(types.items(), key=lambda item: -item[1][2])
    ]
    size = sum(part.stat().st_size for part in file.parts)
    total = sum(weights for _, weights, _ in types.values())
    architecture = file.metadata.get("general.architecture")
    context = file.metadata.get(f"{architecture}.context_length")
    facts = [readable_bytes(size), f"{total:,} parameters", f"architecture {architecture}"]
    if len(file.parts) > 1:
        facts[0] += f" in {len(file.parts)} files"
    if isinstance(context, int):
        facts.append(f"context of {context:,} tokens")
    facts.append(
        "with a chat template" if _text(file, "tokenizer.chat_template") else "without a chat template"
    )
    return "\n".join(
        [
            "## File\n",
            f"{'; '.join(facts)}.\n",
            "| type | tensors | weights | size | bits per weight |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _text(file: GGUFFile, key: str) -> str | None:
    value = file.metadata.get(key)
    return value if isinstance(value, str) and value else None
