"""Gradient accumulation weighs what a term counts: however a step is cut, its gradient is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitexport.train.batch import UNITS, Batch
from bitexport.train.data.batches import BatchPlan, collate
from bitexport.train.data.examples import ListedExamples
from bitexport.train.models import StageModels, load_models
from bitexport.train.objective.diffusion import noise_of
from bitexport.train.objective.objective import TEACHER_TERMS, UNIT_OF_TERM
from bitexport.train.trainer import StudentTrainer
from tests.train.conftest import student_config

TERMS: dict[str, object] = {"feature_weight": 0.5, "attention_weight": 2.0, "router": False}


def answers(count: int = 24) -> ListedExamples:
    """Prompts of 3 tokens with answers of 1 to 20: micro-batches that count very different numbers."""
    random = np.random.default_rng(5)
    examples = []
    for answer in random.integers(1, 21, count):
        ids = random.integers(4, 290, 3 + answer).tolist()
        examples.append((ids, [-100, -100, -100, *ids[3:]]))
    return ListedExamples(examples)


def plan_of(examples: ListedExamples, per_step: int, micro_tokens: int = 64) -> BatchPlan:
    return BatchPlan(examples, micro_tokens=micro_tokens, per_step=per_step, budget=10, seed=1, pad_id=0)


@pytest.fixture
def trainer(teacher: Path, student_run: Path, tmp_path: Path) -> StudentTrainer:
    student = str(student_run / "stage1" / "model")
    config = student_config(tmp_path, teacher, student=student, **TERMS)
    models: StageModels = load_models(config, "3")
    torch.nn.init.normal_(models.student.lm_head.weight, std=0.3)  # far from its teacher, so that terms count
    return StudentTrainer(config, tmp_path, models, plan_of(answers(), 4), [], 1e-3)


def gradients(trainer: StudentTrainer, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Of one optimizer step, as the Trainer accumulates them."""
    trainer.model.train().zero_grad()
    for batch in batches:
        (trainer.compute_loss(trainer.model, dict(batch)) / len(batches)).backward()
    return {name: value.grad.clone() for name, value in trainer.model.named_parameters()}


def test_every_term_has_a_unit() -> None:
    assert UNIT_OF_TERM.keys() == {"next_token", "diffusion", *TEACHER_TERMS}
    assert set(UNIT_OF_TERM.values()) <= {*UNITS}


def test_shares_are_parts_of_the_step_by_what_is_counted() -> None:
    found = plan_of(answers(), 3)
    for step in range(found.steps):
        batches = [found[3 * step + i] for i in range(3)]
        counts = [
            (
                int((batch["labels"][:, 1:] != -100).sum()),
                int(batch["attention_mask"].sum()),
                len(batch["labels"]),
            )
            for batch in batches
        ]
        expected = np.array(counts) / np.sum(counts, axis=0) * 3
        assert torch.stack([batch["shares"] for batch in batches]).numpy() == pytest.approx(expected)
        assert len({count[0] for count in counts}) == 3  # else the test could not fail


def test_a_step_in_one_or_several_micro_batches(trainer: StudentTrainer) -> None:
    """Equal gradients and equal figures in the log; with equal weights per micro-batch, they are not."""
    several_batches = [trainer.train_dataset[i] for i in range(4)]
    indices = np.concatenate([trainer.train_dataset.batches[i][1] for i in range(4)])
    examples = [trainer.train_dataset.examples.get(0, int(i)) for i in indices]
    whole = {**collate(examples, 0), "shares": torch.ones(len(UNITS))}

    several = gradients(trainer, several_batches)
    figures: dict[str, Any] = trainer.term_sums.take_means()
    one = gradients(trainer, [whole])
    assert figures == pytest.approx(trainer.term_sums.take_means(), rel=1e-4)
    equal_weights = gradients(trainer, [{**batch, "shares": torch.ones(3)} for batch in several_batches])
    for name, expected in one.items():
        scale = float(expected.abs().max())
        assert float((several[name] - expected).abs().max()) <= 2e-3 * scale, name
    name = "model.embed_tokens.weight"
    assert float((equal_weights[name] - one[name]).abs().max()) > 0.02 * float(one[name].abs().max())


def test_a_step_without_any_target_is_zero_and_finite() -> None:
    examples = ListedExamples([([1, 2, 3], [-100] * 3)] * 8)
    assert all(torch.isfinite(plan_of(examples, 2)[i]["shares"]).all() for i in range(2))


def test_block_diffusion_is_weighed_by_the_tokens_that_it_predicts(
    teacher: Path, student_run: Path, tmp_path: Path
) -> None:
    """A random number of them, since only one copy of a text is masked."""
    student = str(student_run / "stage1" / "model")
    settings = {"diffusion_weight": 1.0, "diffusion_block_size": 4, "diffusion_complementary": False}
    config = student_config(tmp_path, teacher, student=student, **settings)
    models: StageModels = load_models(config, "3")
    torch.nn.init.normal_(models.student.lm_head.weight, std=0.3)
    noise = noise_of(config, models.student)
    plan = BatchPlan(answers(), micro_tokens=64, per_step=4, budget=10, seed=1, pad_id=0, noise=noise)
    trainer = StudentTrainer(config, tmp_path, models, plan, [], 1e-3)
    batches = [plan[i] for i in range(4)]
    counts = np.array([len(batch["noisy_targets"]) for batch in batches])
    shares = [float(batch["shares"][UNITS.index("masked")]) for batch in batches]
    assert shares == pytest.approx(counts / counts.mean())

    gradients(trainer, batches)
    logged = trainer.term_sums.take_means()["diffusion"]
    losses = [trainer.objective.diffusion_loss(trainer.model, batch, trainer.model) for batch in batches]
    means = np.array([float(loss.detach()) for loss in losses])
    assert logged == pytest.approx(float(means @ counts / counts.sum()), rel=1e-4)
    assert logged != pytest.approx(float(means.mean()), rel=1e-3)
