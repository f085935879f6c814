"""Explains why a path is not a checkpoint folder, and what to give instead."""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path

from bitexport.checkpoint.shards import INDEX, INDEX_BIN, MAX_JSON_BYTES, SINGLE, SINGLE_BIN, read_json
from bitexport.errors import CheckpointError
from bitexport.system.reading import irregular

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"

#: Suffixes of the files of a checkpoint folder.
PARTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".json", ".jinja", ".model"})

#: Folders in a checkpoint from which other libraries read files.
SUBFOLDERS = ("additional_chat_templates", "1_Pooling")

#: What other libraries read whole: settings, tokenizers and templates, which have up to 35 MB. A log or a
#: data set beside them may be larger.
SMALL_PARTS = re.compile(
    r".*(?:config|token|vocab|piece|template|index).*\.(?:json|model|txt)"
    r"|(?:merges|modules|params|tekken)\.(?:json|txt)|.*\.jinja"
)
MAX_SMALL_PART = MAX_JSON_BYTES

#: How many folders a message lists.
LISTED = 4


def check_folder(folder: Path) -> None:
    """Raise CheckpointError, with what to give instead, unless ``folder`` has config.json and weights."""
    if not folder.is_dir():
        raise CheckpointError(_not_a_folder(folder))
    check_files(folder)
    weights = [name for name in (SINGLE, INDEX, SINGLE_BIN, INDEX_BIN) if (folder / name).is_file()]
    if (folder / CONFIG).is_file() and weights:
        return
    lacks = f"no weights ({SINGLE}, {SINGLE_BIN})" if (folder / CONFIG).is_file() else f"no {CONFIG}"
    if (folder / ADAPTER_CONFIG).is_file() and not weights:
        raise CheckpointError(
            f"{folder}: {lacks}; it is an adapter without its model: {adapter_command(folder)}"
        )
    saved = _numbered(folder)
    if saved:
        latest = saved[-1]
        what = (
            f"checkpoints of a training run, {saved[0].name} to {latest.name}" if saved[1:] else latest.name
        )
        command = adapter_command(latest) if not (latest / CONFIG).is_file() else f"run: {_convert(latest)}"
        raise CheckpointError(f"{folder}: {lacks}, but {what}; to convert the latest, {command}")
    # the second pattern is that of a repository in the Hugging Face cache
    models = sorted(each.parent for part in ("*", "snapshots/*") for each in folder.glob(f"{part}/{CONFIG}"))
    if models:
        names = ", ".join(each.name for each in models[:LISTED]) + (", ..." if models[LISTED:] else "")
        several = f"{len(models)} folders in it have one: {names}; give one of them, for example"
        one = f"{models[0].relative_to(folder)} in it has one; run"
        raise CheckpointError(
            f"{folder}: {lacks}, but {several if models[1:] else one}: {_convert(models[0])}"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder}: no {CONFIG}; expected a checkpoint saved with save_pretrained")


def check_files(folder: Path) -> None:
    """Check that what looks like files of a checkpoint is files, before any library opens one.

    A link to a device has no end, and a FIFO makes its reader wait.

    Raises:
        CheckpointError: one is a FIFO, a device or a socket, or is far larger than such a file is.
    """
    for part in (folder, *(folder / name for name in SUBFOLDERS)):
        try:
            entries = sorted(os.listdir(part))  # noqa: PTH208 (names only)
        except OSError:
            continue
        for name in entries:
            if Path(name).suffix in PARTS or SMALL_PARTS.fullmatch(name):
                _check_file(part / name)


def _check_file(path: Path) -> None:
    try:
        found = path.stat()
    except OSError:
        return  # a link to nothing: missing
    kind = irregular(found.st_mode)
    if kind and not stat.S_ISDIR(found.st_mode):
        target = f" (a link to {path.resolve()})" if path.is_symlink() else ""
        raise CheckpointError(
            f"{path} is {kind}{target}; expected a regular file: do not trust this checkpoint, or download "
            "it again"
        )
    if SMALL_PARTS.fullmatch(path.name) and found.st_size > MAX_SMALL_PART:
        raise CheckpointError(
            f"{path} has {found.st_size} bytes; expected at most {MAX_SMALL_PART}: download it again"
        )


def adapter_command(adapter: Path) -> str:
    """What to run to convert an adapter together with its base model, as a clause."""
    base = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if isinstance(base, str) and Path(base).is_dir():
        return f"run: {_convert(Path(base))} --adapter {shlex.quote(str(adapter))}"
    name = f" {base!r}" if isinstance(base, str) and base else ""
    return (
        f"download its base model{name} into a folder BASE and run: bitexport convert BASE OUT.gguf "
        f"--adapter {shlex.quote(str(adapter))}"
    )


def _not_a_folder(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist; expected a checkpoint folder with {CONFIG} and weights"
    if path.suffix in PARTS:
        folder = path.parent
        return (
            f"{path} is a file of a checkpoint; expected its folder, with {CONFIG}: run: {_convert(folder)}"
        )
    return f"{path} is a file; expected a checkpoint folder with {CONFIG} and weights"


def _numbered(folder: Path) -> list[Path]:
    """The folders ``checkpoint-N`` with a model or an adapter, in the order of N."""
    found = [
        (int(match[1]), each)
        for each in folder.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", each.name))
        and any((each / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))
    ]
    return [each for _, each in sorted(found)]


def _convert(folder: Path) -> str:
    return f"bitexport convert {shlex.quote(str(folder))} OUT.gguf"
