"""A float teacher, a ternary student of the same size, and pairs, made once per session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from bitexport.evaluation import PromptAnswer
from tests.support.tiny_models import Shape, save_checkpoint, tiny_model

SHAPE = Shape(hidden=128, ffn=256, context=128)

PAIRS = [
    PromptAnswer("<|pad|>for index in range(10):", " print(index)", "index", 1),
    PromptAnswer("The quick brown fox<|pad|>", "jumps over the lazy dog", None, 2),
    PromptAnswer("x", "def add(left, right):\n    return left + right", None, 4),
    PromptAnswer("class Example:\n    '''A docstring.'''\n", "def __init__(self)", None, 5),
    PromptAnswer("Съешь ещё этих мягких французских булок", "敏捷的棕色狐狸", None, 6),
]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain Llama in float, without a quantization_config."""
    folder = tmp_path_factory.mktemp("teacher") / "c"
    return save_checkpoint(_unsure("llama", 1), folder, config_changes={"quantization_config": None})


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ternary Llama with SubLN, the size of the teacher."""
    return save_checkpoint(_unsure("llama-student", 0), tmp_path_factory.mktemp("student") / "c")


def _unsure(architecture: str, seed: int) -> PreTrainedModel:
    """A random model with small logits: the perplexity of a confidently wrong model means nothing."""
    model = tiny_model(SHAPE, architecture=architecture, seed=seed)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.25)
    return model


@pytest.fixture(scope="session")
def teacher_gguf(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float16 file made from the teacher."""
    from bitexport.convert import convert

    path = tmp_path_factory.mktemp("file") / "teacher.gguf"
    convert(teacher, path, all_float=True)
    return path


@pytest.fixture(scope="session")
def student_gguf(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file made from the student."""
    from bitexport.convert import convert

    path = tmp_path_factory.mktemp("file") / "student.gguf"
    convert(student, path, embed_type="f16")
    return path


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., Path]:
    """``write_pairs(*lines)``: a file with these lines, objects as JSON; without any, :data:`PAIRS`."""

    def write(*lines: object) -> Path:
        path = tmp_path / "pairs.jsonl"
        chosen = lines or [{"prompt": p.prompt, "answer": p.answer, "source": p.source} for p in PAIRS]
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in chosen)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    return write
