"""Chooses the files of a repository that a command needs, from a listing and its small JSON files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from bitexport.checkpoint.folders import ADAPTER_CONFIG, CONFIG
from bitexport.checkpoint.sentence_transformers import MODULES
from bitexport.checkpoint.shards import INDEX, INDEX_BIN, SINGLE, SINGLE_BIN, read_document
from bitexport.errors import CheckpointError, HubError
from bitexport.gguf.splits import suffix
from bitexport.hub.names import HubName

#: What a command can use: ``model`` is a checkpoint or, in a repository without one, a GGUF file.
Want = Literal["checkpoint", "gguf", "model", "adapter"]

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

#: The files that decide which others are needed; downloaded first, if there are any.
FIRST = (CONFIG, INDEX, INDEX_BIN, MODULES, ADAPTER_CONFIG)

#: Small files beside the weights, in the root of a repository: settings, tokenizer, chat template.
_BESIDE = re.compile(
    r"[^/]+\.(?:json|jinja|model|tiktoken)|(?:merges|vocab)\.txt|additional_chat_templates/[^/]+"
)

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

#: The most files that a message lists.
LISTED = 12


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to download.

    Attributes:
        files: their paths in the repository.
        path: the one to open, or ``"."`` for the folder.
    """

    files: tuple[str, ...]
    path: str


def select(name: HubName, want: Want, sizes: Mapping[str, int], folder: Path) -> Selection:
    """Choose the files of a repository.

    Args:
        name: the model.
        want: what the command can use.
        sizes: bytes of every file in the repository, by path.
        folder: where those of :data:`FIRST` that exist have been downloaded to.

    Raises:
        HubError: there is nothing that the command can use, or a file has to be named.
    """
    models = gguf_models(sizes)
    if want == "adapter":
        return _adapter(name, sizes)
    if name.file is not None:
        if want == "checkpoint":
            raise HubError(f"{name} names a file; expected a checkpoint: give {name.repo} alone")
        return _named(name, models, sizes)
    weights = _weights(name, sizes, folder)
    if want != "gguf" and weights:
        return Selection(tuple(sorted({*weights, *_beside(sizes, folder)})), ".")
    if want != "checkpoint" and models:
        return _only(name, models, sizes)
    raise HubError(_nothing(name, want, sizes, folder, bool(weights), models))


def gguf_models(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """The GGUF models of a repository: the first file of each, and all its parts."""
    found: dict[str, list[str]] = {}
    for path in sorted(sizes):
        if not path.endswith(".gguf"):
            continue
        part = _PART.fullmatch(path)
        first = f"{part['stem']}{suffix(1, int(part['count']))}" if part else path
        found.setdefault(first, []).append(path)
    return found


def _named(name: HubName, models: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> Selection:
    first = next((first for first, parts in models.items() if name.file in (first, *parts)), None)
    if first is None:
        raise HubError(f"{name.repo} has no file {name.file!r}; {_choices(name, models, sizes)}")
    return _complete(name, first, models[first])


def _only(name: HubName, models: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> Selection:
    if len(models) > 1:
        raise HubError(f"{name.repo} has {len(models)} GGUF files; {_choices(name, models, sizes)}")
    first, parts = next(iter(models.items()))
    return _complete(name, first, parts)


def _complete(name: HubName, first: str, parts: Sequence[str]) -> Selection:
    part = _PART.fullmatch(first)
    if part and len(parts) != int(part["count"]):
        raise HubError(
            f"{name.repo} has {len(parts)} of the {int(part['count'])} parts of {first}; the upload is "
            "incomplete: give another file or revision"
        )
    return Selection(tuple(parts), first)


def _choices(name: HubName, models: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> str:
    if not models:
        return "it has no GGUF file at all"
    shown = [
        f"{name.repo}:{first} ({sum(sizes[part] for part in parts) / 1e6:,.1f} MB)"
        for first, parts in list(models.items())[:LISTED]
    ]
    return f"give one of them: {', '.join(shown)}" + (", ..." if len(models) > LISTED else "")


def _weights(name: HubName, sizes: Mapping[str, int], folder: Path) -> list[str]:
    """The files with the weights of a checkpoint, in the order of preference in which they are read."""
    for single, index in ((SINGLE, INDEX), (SINGLE_BIN, INDEX_BIN)):
        if single in sizes:
            return [single]
        if index in sizes:
            content = _read(folder / index)
            found = content.get("weight_map") if isinstance(content, dict) else None
            shards = sorted(set(map(str, found.values()))) if isinstance(found, dict) else []
            missing = [shard for shard in shards if shard not in sizes]
            if missing:
                raise HubError(
                    f"{name.repo}: {index} names {missing[0]}, which is not in the repository; the upload is "
                    "incomplete: give another revision"
                )
            return [index, *shards]
    return []


def _beside(sizes: Mapping[str, int], folder: Path) -> list[str]:
    found = [path for path in sizes if _BESIDE.fullmatch(path) and not path.endswith(".index.json")]
    found += [path for path in _module_settings(folder) if path in sizes]
    return found + ([path for path in ADAPTER_WEIGHTS if path in sizes] if ADAPTER_CONFIG in sizes else [])


def _module_settings(folder: Path) -> list[str]:
    """The settings of the modules that sentence-transformers lists, such as ``1_Pooling/config.json``."""
    modules = _read(folder / MODULES)
    listed = modules if isinstance(modules, list) else []
    paths = [str(each.get("path", "")) for each in listed if isinstance(each, dict)]
    return [str(PurePosixPath(path) / CONFIG) for path in paths if path]


def _adapter(name: HubName, sizes: Mapping[str, int]) -> Selection:
    weights = next((path for path in ADAPTER_WEIGHTS if path in sizes), None)
    if name.file is not None or ADAPTER_CONFIG not in sizes or weights is None:
        raise HubError(
            f"{name} is not a LoRA adapter; expected a repository with {ADAPTER_CONFIG} and "
            f"{ADAPTER_WEIGHTS[0]}"
        )
    return Selection((ADAPTER_CONFIG, weights), ".")


def _nothing(
    name: HubName,
    want: Want,
    sizes: Mapping[str, int],
    folder: Path,
    weights: bool,
    models: Mapping[str, Sequence[str]],
) -> str:
    if want == "gguf" and weights:
        return (
            f"{name} is a checkpoint without a GGUF file; convert it first: "
            f"bitexport convert {name} {name.folder}.gguf"
        )
    if want == "checkpoint" and models:
        return f"{name.repo} has GGUF files and no checkpoint; expected {CONFIG} and {SINGLE}"
    if ADAPTER_CONFIG in sizes:
        base = _read(folder / ADAPTER_CONFIG)
        model = base.get("base_model_name_or_path") if isinstance(base, dict) else None
        return (
            f"{name} is an adapter without its model; run: bitexport convert {model or 'BASE'} OUT.gguf "
            f"--adapter {name}"
        )
    expected = {
        "gguf": "a GGUF file",
        "checkpoint": f"a checkpoint ({CONFIG} and {SINGLE})",
    }.get(want, f"a checkpoint ({CONFIG} and {SINGLE}) or a GGUF file")
    listed = ", ".join(sorted(sizes)[:LISTED]) or "nothing"
    return f"{name.repo} does not have {expected}; it has {listed}{', ...' if len(sizes) > LISTED else ''}"


def _read(path: Path) -> Any:
    """A small JSON file; an empty object if it is missing or damaged, which the command reports later."""
    try:
        return read_document(path)
    except CheckpointError:
        return {}
