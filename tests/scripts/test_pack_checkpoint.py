from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from bitexport.train.data.bpe import train_tokenizer
from bitexport.train.student.checkpoint import save_checkpoint
from bitexport.train.student.fresh import build_model
from tests.support.repository import REPOSITORY
from tests.train.conftest import tiny_config


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/pack_checkpoint.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)


def test_packs_the_model_of_a_stage_and_rejects_a_packed_one(tmp_path: Path) -> None:
    model = build_model(tiny_config(tmp_path, architecture="bitnet", ternary=True), 0)
    save_checkpoint(model, train_tokenizer(["some text"], 257, 64), tmp_path / "model")
    done = run(tmp_path / "model", tmp_path / "packed")
    assert done.returncode == 0, done.stderr
    assert "bytes of weights" in done.stdout
    packed = load_file(tmp_path / "packed" / "model.safetensors")
    assert packed["model.layers.0.mlp.up_proj.weight"].dtype == torch.uint8
    again = run(tmp_path / "packed", tmp_path / "again")
    assert again.returncode == 1
    assert "expected autobitlinear and online; give RUN/<stage>/model" in again.stderr
    assert run(tmp_path / "model", tmp_path / "packed").returncode == 1
    assert run(tmp_path / "model", tmp_path / "packed", "--force").returncode == 0
