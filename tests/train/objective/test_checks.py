"""Settings of the objective that do not fit the two models are errors that name them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitexport.errors import UsageError
from bitexport.train.config import TrainConfig
from bitexport.train.objective.checks import (
    check_relation_heads,
    check_relation_layer,
    check_settings,
    check_vocabularies,
)
from tests.train.conftest import tiny_config


def model(hidden_size: int = 64, vocab_size: int = 300) -> Any:
    return SimpleNamespace(config=SimpleNamespace(hidden_size=hidden_size, vocab_size=vocab_size))


def test_unequal_vocabularies_are_refused_without_a_projector() -> None:
    check_vocabularies(300, 300, projector=False)
    check_vocabularies(300, 512, projector=True)
    with pytest.raises(UsageError, match=r"300 tokens.*512.*logit_projector = true"):
        check_vocabularies(300, 512, projector=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_weight": 1.0}, r"feature_weight with hidden sizes of 64 \(student\) and 96 \(teacher\)"),
        ({"contrastive_weight": 1.0}, "contrastive_weight with hidden sizes of 64"),
        ({"router": True}, "router without feature_weight: set feature_weight, too"),
        ({"logit_projector": True, "logits_weight": 0.0}, "logit_projector without logits_weight"),
        ({"logits_top_k": 301}, "logits_top_k = 301; expected at most the teacher's vocabulary of 300"),
        ({"chunk_tokens": 64}, "chunk_tokens with logits_weight needs logits_top_k"),
    ],
)
def test_terms_that_cannot_be_compared_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=f"^config: {message}"):
        check_settings(tiny_config(tmp_path, **changes), model(64), model(96))


@pytest.mark.parametrize(
    "changes", [{}, {"feature_weight": 1.0, "router": True}, {"chunk_tokens": 64, "logits_top_k": 300}]
)
def test_terms_that_can_be_compared_pass(tmp_path: Path, changes: dict[str, Any]) -> None:
    config: TrainConfig = tiny_config(tmp_path, **changes)
    check_settings(config, model(64), model(96))


def test_the_layer_and_the_heads_of_relations() -> None:
    check_relation_layer(3, teacher_layers=4)
    with pytest.raises(UsageError, match="relation_layer = 4; expected 0 to 3"):
        check_relation_layer(4, teacher_layers=4)
    projections = [SimpleNamespace(out_features=width) for width in (64, 32, 32)]
    check_relation_heads(8, projections)
    with pytest.raises(UsageError, match=r"relation_heads = 7; expected a divisor .* 32, 64"):
        check_relation_heads(7, projections)
