"""Copies of checkpoints with something changed or damaged."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def edited(source: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a checkpoint with another config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def resaved(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A change to the tensors of a folder with one shard."""

    def damage(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, str(folder / "model.safetensors"))

    return damage


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A change to config.json."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        change(found)
        (folder / "config.json").write_text(json.dumps(found))

    return damage


def index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    """A change to the index of a sharded folder."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        found = json.loads(path.read_text())
        change(found["weight_map"])
        path.write_text(json.dumps(found))

    return damage


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def corrupt_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[9:20] = b"\xff" * 11
    path.write_bytes(bytes(content))


def huge_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[:8] = struct.pack("<Q", 2**60)
    path.write_bytes(bytes(content))


def second_shard(folder: Path) -> Path:
    return next(folder.glob("model-00002-of-*.safetensors"))
