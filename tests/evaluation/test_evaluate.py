"""The complete evaluation, as a function and as a command, on real tiny models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import sacrebleu
from transformers import GPT2Config, GPT2LMHeadModel

from bitexport.errors import GGUFError, UsageError
from bitexport.evaluation import PromptAnswer, evaluate
from bitexport.progress import ProgressEvent
from tests.evaluation.conftest import PAIRS, SHAPE
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import TEXT, Shape, save_checkpoint, tiny_model, write_tokenizer

Cli = Callable[..., "CompletedProcess[str]"]
Write = Callable[..., Path]


def test_teacher_and_student_side_by_side(teacher: Path, student: Path, student_gguf: Path) -> None:
    seen: list[ProgressEvent] = []
    report = evaluate(
        student,
        teacher=teacher,
        student_gguf=student_gguf,
        text="".join(TEXT),
        pairs=PAIRS,
        max_tokens=6,
        progress=seen.append,
    )
    assert [column.name for column in report.columns] == ["teacher-python", "student-python", "student-c++"]
    first, python, cpp = report.columns
    for column in report.columns:
        assert column.text is not None
        assert column.pairs is not None
        assert column.translation is not None
        assert len(column.answers) == len(PAIRS)
        references = [pair.answer.strip() for pair in PAIRS]
        expected = sacrebleu.corpus_chrf(column.answers, [references]).score
        assert column.translation.chrf == pytest.approx(expected)
        assert "version:" in column.translation.bleu_signature
    assert python.text.perplexity == pytest.approx(cpp.text.perplexity, rel=0.01)  # type: ignore[union-attr]
    same = sum(map(str.__eq__, python.answers, cpp.answers))
    assert same >= len(PAIRS) - 1  # these models are so unsure that two tokens may be equally likely
    assert (first.similarity, cpp.similarity) == (None, None)
    assert -1 <= (python.similarity or 2) < 0.99
    kept = report.kept(python)
    assert report.kept(first) is None
    assert kept is not None
    ratio = python.pairs.perplexity / first.pairs.perplexity  # type: ignore[union-attr]
    assert kept.pairs_perplexity == pytest.approx(ratio)
    assert report.converted is None
    assert report.skipped == {}
    assert {event.label for event in seen} >= {"teacher-python: answering", "student-c++: predicting"}


def test_a_teacher_keeps_all_of_itself(teacher: Path) -> None:
    pairs = [PromptAnswer("for index in", "range(10)"), PromptAnswer("The quick", "brown fox")]
    report = evaluate(teacher, teacher=teacher, pairs=pairs, max_tokens=4)
    _, again, _ = report.columns
    kept = report.kept(again)
    assert again.similarity == pytest.approx(1)
    assert kept is not None
    assert (kept.text_perplexity, kept.pairs_perplexity) == (None, 1)
    assert kept.chrf in (None, 100)
    assert report.converted == {"type": "f16", "embed_type": "f16"}


def test_a_teacher_in_cpp_is_the_teacher_in_python(
    teacher: Path, teacher_gguf: Path, student_gguf: Path
) -> None:
    report = evaluate(student_gguf, teacher=teacher, teacher_gguf=teacher_gguf, text="".join(TEXT))
    assert [column.name for column in report.columns] == ["teacher-python", "teacher-c++", "student-c++"]
    python, cpp, _ = report.columns
    assert cpp.text.perplexity == pytest.approx(python.text.perplexity, rel=0.002)  # type: ignore[union-attr]
    assert report.teacher is python


def test_a_family_that_convert_does_not_know_has_no_cpp_column(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=512, n_positions=64, n_embd=64, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    report = evaluate(tmp_path, text="".join(TEXT))
    assert [column.name for column in report.columns] == ["student-python"]
    assert "convert refuses: llama.cpp's converter" in report.skipped["student-c++"]


def test_a_checkpoint_alone_is_converted_and_uses_the_built_in_text(student: Path) -> None:
    report = evaluate(student, limit=2)
    assert [column.name for column in report.columns] == ["student-python", "student-c++"]
    assert report.converted == {"type": "i2_s", "embed_type": "f16"}
    assert (report.pairs, report.windows) == (0, 2)
    assert not any(column.translation for column in report.columns)
    assert not Path(report.columns[1].path).exists()


def test_files_alone_need_no_pytorch(
    run_cli: Cli, student_gguf: Path, write_pairs: Write, tmp_path: Path
) -> None:
    """A GGUF file against a GGUF file: everything but hidden states."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "transformers"):
        (blocked / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')")
    env = {"PYTHONPATH": f"{blocked}:{REPOSITORY}"}
    pairs = write_pairs()
    arguments = ("eval", student_gguf, "--teacher", student_gguf, "--pairs", pairs, "--max-tokens", "4")
    result = run_cli(*arguments, "--json", env=env)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert [column["name"] for column in document["columns"]] == ["teacher-c++", "student-c++"]
    assert document["columns"][1]["kept"]["pairs_perplexity_ratio"] == 1
    assert "folders" in document["skipped"]["similarity"]
    refused = run_cli("eval", tmp_path, "--pairs", pairs, env=env)
    assert refused.returncode == 1
    assert "pip install 'bitexport[eval]'" in refused.stderr


SLOW = """
import sys, time
from bitexport.evaluation.cpp_side import CppRunner
def slow(self, items, progress):
    print("started", flush=True)
    time.sleep(30)
CppRunner.score = slow
from bitexport.cli import main
main()
"""


def test_interrupted(student: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "eval", str(student), "--limit", "1"],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path), "BITEXPORT_DEBUG": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    assert list(tmp_path.glob("*/student.gguf"))  # the temporary file
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=25)
    assert (process.returncode, error) == (130, "interrupted\n")
    assert not list(tmp_path.glob("*/student.gguf"))


def test_without_sacrebleu(run_cli: Cli, student_gguf: Path, write_pairs: Write, tmp_path: Path) -> None:
    (tmp_path / "sacrebleu.py").write_text("raise ModuleNotFoundError('no', name='sacrebleu')")
    env = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    result = run_cli("eval", student_gguf, "--pairs", write_pairs(), env=env)
    assert result.returncode == 1
    assert "needs the Python package sacrebleu" in result.stderr
    assert "pip install 'bitexport[eval]'" in result.stderr
    result = run_cli("eval", student_gguf, "--pairs", write_pairs(), "--max-tokens", "0", env=env)
    assert result.returncode == 0, result.stderr


def test_table(run_cli: Cli, teacher_gguf: Path, student_gguf: Path, write_pairs: Write) -> None:
    result = run_cli(
        *("eval", student_gguf, "--teacher", teacher_gguf),
        *("--pairs", write_pairs(), "--max-tokens", "4", "--limit", "3"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for word in ("teacher-c++", "student-c++", "3 answers: perplexity over the teacher's", "BLEU", "chrF"):
        assert word in result.stdout
    assert "text:" not in result.stdout


def test_wrong_combinations(student: Path, student_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which is also a file"):
        evaluate(student_gguf, student_gguf=student_gguf)
    with pytest.raises(UsageError, match="give --teacher"):
        evaluate(student, teacher_gguf=student_gguf)
    with pytest.raises(UsageError, match="not a file"):
        evaluate(student, student_gguf=tmp_path / "none")
    with pytest.raises(UsageError, match="there are no pairs"):
        evaluate(student_gguf, pairs=[])
    with pytest.raises(GGUFError, match=r"none\.gguf: cannot be read"):
        evaluate(tmp_path / "none.gguf")


def test_models_with_different_tokenizers_are_not_compared(
    teacher: Path, student_gguf: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(teacher, folder)
    write_tokenizer(folder, "smollm", 300)
    with pytest.raises(UsageError, match=r"tokenize .* differently .*: evaluate them separately"):
        evaluate(student_gguf, teacher=folder, text="".join(TEXT))


def test_a_tokenizer_with_more_tokens_than_the_model(student_gguf: Path, tmp_path: Path) -> None:
    model = tiny_model(Shape(hidden=128, ffn=256, vocab=64), architecture="llama")
    save_checkpoint(model, tmp_path / "c", config_changes={"quantization_config": None})
    with pytest.raises(UsageError, match="teacher-python has 64 tokens"):
        evaluate(student_gguf, teacher=tmp_path / "c", text="def add")


def test_a_pair_beyond_the_context_is_named_by_its_line(
    run_cli: Cli, student_gguf: Path, write_pairs: Write
) -> None:
    pairs = write_pairs({"prompt": "a", "answer": "b"}, {"prompt": "é " * SHAPE.context, "answer": "b"})
    result = run_cli("eval", student_gguf, "--pairs", pairs)
    assert result.returncode == 2
    assert "line 2: the prompt has" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_student_without_its_quantization_config_is_refused(student: Path, tmp_path: Path) -> None:
    """Loaded as a float model, it would silently lose its SubLN."""
    folder = tmp_path / "c"
    shutil.copytree(student, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="needs its quantization_config"):
        evaluate(folder)
