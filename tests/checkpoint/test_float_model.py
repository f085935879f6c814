"""A full-precision checkpoint where a ternary one is needed: refused by name, before anything is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bitexport.checkpoint import open_checkpoint
from bitexport.checkpoint.float_model import is_full_precision
from bitexport.convert import convert
from bitexport.doctor import doctor
from bitexport.errors import UsageError
from bitexport.parity import parity
from bitexport.train.data.bpe import train_tokenizer
from bitexport.train.student.checkpoint import save_checkpoint
from bitexport.train.student.surgery import make_student


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float teacher, and the student made of it."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["red house"], 258, 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    save_checkpoint(model, tokenizer, folder / "teacher")
    save_checkpoint(make_student(model), tokenizer, folder / "student")
    return folder / "teacher", folder / "student"


def test_only_the_float_one_is_recognised(folders: tuple[Path, Path]) -> None:
    teacher, student = folders
    assert is_full_precision(open_checkpoint(teacher))
    assert not is_full_precision(open_checkpoint(student))


def test_float_weights_that_are_ternary_are_not_full_precision(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(folders[0])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                trits = np.random.default_rng(0).integers(-1, 2, tuple(weight.shape))
                weight.copy_(torch.from_numpy(trits * np.float32(0.5)))
    model.save_pretrained(tmp_path)
    assert not is_full_precision(open_checkpoint(tmp_path))


def test_parity_with_its_float_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """No side quantizes anything; before, PyTorch took the weights for master weights."""
    teacher, student = folders
    file = tmp_path / "teacher.gguf"
    convert(teacher, file, all_float=True)
    for align in (False, True):
        report = parity(teacher, file, ["red house", "house red house"], tokens=4, align=align, layers=align)
        assert report.passed
        assert report.plain.cosine_min > 0.9999
    with pytest.raises(UsageError, match=r"teacher.gguf is a float model.*student is ternary; expected two"):
        parity(student, file, ["red house"])


def test_doctor_refuses_it(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """``parity`` does not: master weights without a quantization_config look the same."""
    teacher, student = folders
    convert(student, tmp_path / "student.gguf", embed_type="f16")
    with pytest.raises(UsageError, match=r"teacher is a full-precision checkpoint: .*give the student"):
        doctor(teacher, tmp_path / "student.gguf")
