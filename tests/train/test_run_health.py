"""Signs of the health of a run: against slow twins, in the log and the picture, and after it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitexport.errors import UsageError
from bitexport.train import run_health
from bitexport.train.causes import describe_zero_rows, zero_rows
from bitexport.train.loss_curve import plot, read_log
from bitexport.train.models import load_models
from bitexport.train.run_health import HEALTH_KEYS, RunHealth
from bitexport.train.stages import train
from bitexport.train.student.bitlinear import BitLinear
from bitexport.train.student.checkpoint import load_causal_lm
from bitexport.train.trainer import DivergedError
from tests.train.conftest import student_config


@pytest.fixture
def student(student_run: Path) -> Any:
    return load_causal_lm(student_run / "stage1" / "model")


def batch_of(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def trits(layer: BitLinear) -> torch.Tensor:
    scale = layer.weight.abs().mean()
    return (layer.weight / scale).round().clamp(-1, 1)


def test_every_figure_equals_its_slow_twin(student: Any, tmp_path: Path) -> None:
    health = RunHealth(student)
    health.begin(10)
    layers = [[m for m in layer.modules() if isinstance(m, BitLinear)] for layer in student.model.layers]
    before = [[trits(m) for m in layer] for layer in layers]
    with torch.no_grad():
        for layer in layers[1]:
            layer.weight.mul_(1 + 0.5 * torch.randn(layer.weight.shape, generator=torch.manual_seed(1)))
    batch = batch_of([[5, 6, 7, 8, 0, 0], [9, 10, 11, 12, 13, 14]])
    health.measure(student, batch, 14)
    found = health.last
    assert tuple(found) == HEALTH_KEYS
    for number, layer in enumerate(layers):
        zero = torch.stack([(trits(m) == 0).float().mean() for m in layer]).mean()
        flips = [(trits(m) != b).float().mean() / 4 for m, b in zip(layer, before[number], strict=True)]
        assert found["zero_trits"][number] == pytest.approx(float(zero), rel=1e-3)
        assert found["trit_flips"][number] == pytest.approx(float(torch.stack(flips).mean()), rel=1e-3)
    assert found["trit_flips"][0] == 0
    assert found["trit_flips"][1] > 0.01

    x = student.model.embed_tokens(batch["input_ids"])[batch["attention_mask"].bool()]  # [N, D]
    normed = student.model.layers[0].input_layernorm(x)
    first = (normed.abs().amax(-1) / normed.square().mean(-1).sqrt()).mean()
    peaks = RunHealth(student)._peaks(student, batch)
    assert float(peaks[0]) == pytest.approx(float(first), rel=1e-4)
    assert "flip per step" in health.describe()

    health.save(tmp_path / "health.safetensors")
    other = RunHealth(student)
    other.load(tmp_path / "health.safetensors")
    other.begin(99)
    other.measure(student, batch, 15)
    health.measure(student, batch, 15)
    assert other.last == health.last


def test_a_float_model_has_none(teacher: Path) -> None:
    health = RunHealth(load_causal_lm(teacher / "pretrain" / "model"))
    health.measure(None, {}, 1)
    assert health.last == {}
    assert health.describe() == ""


def test_the_log_and_the_picture_have_it(student_run: Path, tmp_path: Path) -> None:
    log = student_run / "stage3" / "log.jsonl"
    lines = [line for line in read_log(log) if "held_out_loss" in line]
    assert lines
    for line in lines:
        assert [len(line[key]) for key in HEALTH_KEYS] == [2, 2, 2, 2]
        assert all(0.1 < value < 0.9 for value in line["zero_trits"])
    plot(log, tmp_path / "loss.svg")
    picture = (tmp_path / "loss.svg").read_text()
    assert "drift of the scales" in picture
    assert run_health.HEALTH_KEYS[0] not in picture  # words instead of names


def with_zero_row(source: Path, folder: Path, token: int) -> str:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_a_zero_row_at_the_beginning_is_named(teacher: Path, student_run: Path, tmp_path: Path) -> None:
    """The template begins every example with <|en|>; a gradient that overflows is blamed on it."""
    source = student_run / "stage1" / "model"
    tokenizer = load_models(student_config(tmp_path, teacher, student=str(source)), "3").tokenizer
    first = tokenizer.convert_tokens_to_ids("<|en|>")
    student = with_zero_row(source, tmp_path / "zero", first)
    assert zero_rows(load_causal_lm(student)) == {first}
    config = student_config(tmp_path / "run", teacher, student=student, relation_weight=3e38)
    with pytest.raises(
        DivergedError, match=r"begin with token \d+ \('<\|en\|>'\), whose embedding is all zero"
    ):
        train(config, "3", say=lambda _: None)


def test_a_zero_row_elsewhere_is_not_blamed() -> None:
    batches = [
        batch_of([[5, 3, 7, 0]]),
        {**batch_of([[5, 6, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 2, 2]])},
    ]
    assert describe_zero_rows(frozenset({3, 0}), batches, None) == ""

    class Names:
        def convert_ids_to_tokens(self, token: int) -> str:
            return f"<{token}>"

    assert "token 8 ('<8>')" in describe_zero_rows(frozenset({8}), batches, Names())


def test_a_teacher_that_is_already_ternary_is_refused(student_run: Path, tmp_path: Path) -> None:
    """By every stage that has a teacher, before anything is written."""
    model = student_run / "stage3" / "model"
    for stage in ("1", "3", "all"):
        config = student_config(tmp_path, student_run)
        changed = {**vars(config), "teacher": str(model)}
        if stage == "3":
            changed["student"] = str(student_run / "stage1" / "model")
        with pytest.raises(UsageError, match=r"teacher .* is already ternary; expected a full-precision"):
            train(student_config(tmp_path, student_run, **changed), stage, say=lambda _: None)
    assert not (tmp_path / "run").exists()
