"""``convert --float``: a model that is not ternary, to compare a ternary one with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bitexport.convert import convert
from bitexport.errors import CheckpointError, UnsupportedError, UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.session import Session
from tests.support.tiny_models import Shape, save_checkpoint, tiny_model

Checkpoints = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
IDS = [0, 5, 300, 17, 17, 250, 3, 8]


def save_float(folder: Path, architecture: str = "llama", tied: bool = True) -> Path:
    model = tiny_model(Shape(hidden=128, ffn=192), architecture=architecture, tied=tied)
    return save_checkpoint(model, folder, config_changes={"quantization_config": None})


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("llama", False), ("qwen3", True)])
def test_cpp_computes_what_transformers_does(tmp_path: Path, architecture: str, tied: bool) -> None:
    folder = save_float(tmp_path / "c", architecture, tied)
    report = convert(folder, tmp_path / "x.gguf", all_float=True)
    assert (report.packing, report.type, report.embed_type, report.ternary_tensors) == (
        "float",
        "f16",
        "f16",
        0,
    )
    file = read_gguf(tmp_path / "x.gguf")
    assert {tensor.type.name for tensor in file.tensors if len(tensor.shape) == 2} == {"f16"}
    assert file.metadata["general.file_type"] == 1
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    with Session(tmp_path / "x.gguf", n_threads=1) as session:
        found = session.logits(IDS)
    for cpp, python in zip(found, expected, strict=True):
        cosine = cpp @ python / np.linalg.norm(cpp) / np.linalg.norm(python)
        assert cosine > 0.99999


def test_only_with_the_option(tmp_path: Path, run_cli: Cli) -> None:
    folder = save_float(tmp_path / "c")
    refused = run_cli("convert", folder, tmp_path / "x.gguf", "--type", "f16", "--embed-type", "f16")
    assert refused.returncode == 1
    assert "--float" in refused.stderr
    result = run_cli("convert", folder, tmp_path / "x.gguf", "--float")
    assert result.returncode == 0, result.stderr
    assert "from float weights" in result.stdout


def test_a_ternary_checkpoint_is_not_float(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    with pytest.raises(CheckpointError, match="without --float"):
        convert(checkpoint_of("master"), tmp_path / "x.gguf", all_float=True)


def test_options_that_exclude_it(tmp_path: Path, gguf_of: Checkpoints) -> None:
    folder = save_float(tmp_path / "c")
    for kind in ("tq2_0", "i2_s"):
        with pytest.raises(UsageError, match=f"--float with --type {kind}; expected no --type"):
            convert(folder, tmp_path / "x.gguf", type=kind, all_float=True)
    with pytest.raises(UsageError, match="expected a folder"):
        convert(gguf_of("master"), tmp_path / "x.gguf", all_float=True)


def test_its_file_does_not_become_ternary(tmp_path: Path) -> None:
    convert(save_float(tmp_path / "c"), tmp_path / "x.gguf", all_float=True)
    with pytest.raises(UnsupportedError, match="none of its linear layers is ternary"):
        convert(tmp_path / "x.gguf", tmp_path / "y.gguf", type="tq2_0")
    assert not (tmp_path / "y.gguf").exists()
