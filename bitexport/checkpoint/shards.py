"""Finds the files with the weights of a checkpoint folder, and the tensors in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitexport.checkpoint.safetensors import MAX_TENSORS, TensorInfo, json_values, read_header
from bitexport.checkpoint.torch_file import read_torch_file
from bitexport.errors import CheckpointError
from bitexport.system.reading import read_regular

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: The same in PyTorch's own format.
SINGLE_BIN = "pytorch_model.bin"
INDEX_BIN = "pytorch_model.bin.index.json"

#: tokenizer.json has up to 35 MB, and 1.5 million brackets and commas, which show how much memory it takes.
MAX_JSON_BYTES = 128 * 1024 * 1024
MAX_JSON_VALUES = 5_000_000

#: Some files that a person could have written.
SMALL = ("config.json", "generation_config.json", "adapter_config.json")
MAX_SMALL_BYTES = 4 * 1024 * 1024


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint folder.

    Raises:
        CheckpointError: the file is missing, too large, not JSON, or not an object.
    """
    value = read_document(path)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path.name}: contains a {type(value).__name__}, expected a JSON object; download it again"
        )
    return value


def read_document(path: Path) -> Any:
    """The JSON value in a file of the checkpoint folder.

    Raises:
        CheckpointError: the file is missing, not a regular file, too large, or not JSON.
    """
    most = MAX_SMALL_BYTES if path.name in SMALL else MAX_JSON_BYTES
    try:
        raw = read_regular(path, most)
        if (values := json_values(raw)) > MAX_JSON_VALUES:
            raise CheckpointError(
                f"{path.name}: has about {values} values; expected at most {MAX_JSON_VALUES}: download it "
                "again"
            )
        return json.loads(raw.decode("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); download it again, as a file"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path.name}: not valid JSON ({reason}); download it again") from error


def find_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of the checkpoint, by name; the headers of all shards have been checked.

    As in transformers, safetensors are preferred to PyTorch's own format and a single file to shards, which
    the index names.

    Raises:
        CheckpointError: there are no weights, a shard is missing or is outside the folder, or shards and
            index disagree.
    """
    for single, index in ((SINGLE, INDEX), (SINGLE_BIN, INDEX_BIN)):
        if (folder / single).is_file():
            return read_shard(inside(folder, single))
        if (folder / index).is_file():
            return _from_index(folder, index)
    others = sorted(
        entry.name for entry in folder.iterdir() if entry.suffix in {".safetensors", ".bin", ".pt", ".pth"}
    )
    found = f"found {', '.join(others[:3])}" if others else "found no weights"
    raise CheckpointError(
        f"{folder}: no {SINGLE}, {SINGLE_BIN} or index of shards ({found}); save the model with "
        "save_pretrained"
    )


def stored_as_safetensors(folder: Path) -> bool:
    """Whether :func:`find_tensors` reads safetensors rather than PyTorch's own format."""
    return any((folder / name).is_file() for name in (SINGLE, INDEX))


def read_shard(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, by name.

    Raises:
        CheckpointError: see :func:`read_header` and :func:`read_torch_file`.
    """
    return read_torch_file(path) if path.suffix == ".bin" else read_header(path)


def _from_index(folder: Path, index: str) -> dict[str, TensorInfo]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected a weight_map that names the shards; download it again")
    if len(weight_map) > MAX_TENSORS:
        raise CheckpointError(
            f"{index}: lists {len(weight_map)} tensors; expected at most {MAX_TENSORS}: download it again"
        )
    shards: dict[str, Path] = {}
    for name in weight_map.values():
        if not isinstance(name, str):
            raise CheckpointError(f"{index}: shard name {name!r} is not text; download it again")
        if name not in shards:
            shards[name] = inside(folder, name, index)
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(shards):
        _merge(tensors, read_shard(shards[name]), weight_map)
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(
                f"{index}: tensor '{name}' is not in its shard {shard}; the shard is from another save: "
                "download it again"
            )
    return tensors


def _merge(
    tensors: dict[str, TensorInfo], found: Mapping[str, TensorInfo], weight_map: Mapping[str, str]
) -> None:
    for name, tensor in found.items():
        if weight_map.get(name) != tensor.shard.name:
            listed = weight_map.get(name)
            what = f"the index assigns it to {listed}" if listed else "the index does not list it"
            raise CheckpointError(
                f"{tensor.shard.name}: contains tensor '{name}', but {what}; index and shards are from "
                "different saves: download them again"
            )
        tensors[name] = tensor


def inside(folder: Path, name: str, named_by: str = INDEX) -> Path:
    """The path of a shard, which must be a file in the folder itself.

    A link is followed only in a folder of the Hugging Face cache, ``models--owner--name/snapshots/REVISION``
    or one in it, whose files are links into that repository's ``blobs``.

    Args:
        named_by: the file that names the shard, for the message.

    Raises:
        CheckpointError: it is missing, or outside.
    """
    if name in {"", ".", ".."} or re.search(r"[/\\\x00:]", name):
        raise CheckpointError(
            f"{named_by}: shard name {name!r} points outside the folder; expected a plain file name: do not "
            "trust this checkpoint"
        )
    path = folder / name
    try:
        found = path.is_file()
    except (OSError, ValueError):  # not a valid file name: too long, or not encodable
        found = False
    if not found:
        raise CheckpointError(f"{folder}: shard {name!r} is missing; download the checkpoint again")
    target, root = path.resolve(), folder.resolve()
    allowed = [root, *(parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots")]
    if not any(target.is_relative_to(directory) for directory in allowed):
        raise CheckpointError(
            f"{folder}: shard {name} is a link to {target}, outside the folder; copy the file into the folder"
        )
    return path
