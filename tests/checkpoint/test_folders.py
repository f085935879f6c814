"""Paths that are not checkpoint folders: the message says what to give, and that works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.checkpoint import open_checkpoint
from bitexport.convert import convert
from bitexport.errors import CheckpointError


def advised(message: str, output: Path) -> list[str]:
    """The arguments of the command that a message proposes, for another output."""
    _, _, command = message.partition("bitexport convert ")
    return [str(output) if part == "OUT.gguf" else part for part in shlex.split(command)]


def follow(path: Path, match: str, output: Path) -> None:
    """Convert ``path``, which fails, and then what the message proposes."""
    with pytest.raises(CheckpointError, match=match) as caught:
        convert(path, output, embed_type="f16")
    source, target = advised(str(caught.value), output)
    convert(source, target, embed_type="f16")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_a_checkpoint(
    tmp_path: Path, checkpoint_of: Callable[..., Path], gguf_of: Callable[..., Path], name: str
) -> None:
    follow(checkpoint_of() / name, "is a file of a checkpoint; expected its folder", tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == gguf_of().read_bytes()


@pytest.mark.parametrize("config", [False, True])
def test_checkpoints_of_a_training_run(
    tmp_path: Path, checkpoint_of: Callable[..., Path], config: bool
) -> None:
    """The latest is that of the largest number, not the last name in alphabetical order."""
    run = tmp_path / "my run"
    for step in (1000, 200, 30):
        shutil.copytree(checkpoint_of(), run / f"checkpoint-{step}")
    (run / "checkpoint-2000").mkdir()  # empty: the run was stopped while it saved
    if config:
        shutil.copy(checkpoint_of() / "config.json", run)
    match = r"checkpoint-30 to checkpoint-1000; to convert the latest, run: .*checkpoint-1000' OUT\.gguf$"
    follow(run, match, tmp_path / "x.gguf")


def test_several_models(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    for name in ("b", "a"):
        shutil.copytree(checkpoint_of(), tmp_path / "models" / name)
    match = r"no config\.json, but 2 folders in it have one: a, b; give one"
    follow(tmp_path / "models", match, tmp_path / "x.gguf")


def test_a_repository_of_the_hub_cache(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "abc"
    shutil.copytree(checkpoint_of(), repository / "blobs")
    (repository / "blobs" / "config.json").rename(repository / "blobs" / "0123")
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    (snapshot / "config.json").symlink_to(Path("../../blobs/0123"))
    follow(repository, r"no config\.json, but snapshots/abc in it has one; run: ", tmp_path / "x.gguf")


def test_a_folder_with_checkpoints_and_a_model_is_the_model(
    tmp_path: Path, checkpoint_of: Callable[..., Path]
) -> None:
    shutil.copytree(checkpoint_of(), tmp_path / "c")
    shutil.copytree(checkpoint_of(), tmp_path / "c" / "checkpoint-1")
    assert open_checkpoint(tmp_path / "c").path == tmp_path / "c"


def test_an_adapter_saved_among_the_tensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"
    save_file({name: torch.ones(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=re.escape(f"tensor '{name}' is part of a LoRA adapter")):
        open_checkpoint(tmp_path)


def test_a_damaged_adapter_config(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps([]))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: contains a list"):
        open_checkpoint(tmp_path)
