"""Every family, end to end: a tiny random model is converted, run by our libllama, and compared.

Each must pass parity with aligned embeddings and rounding, for the whole model and step by step.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bitexport.convert import convert
from bitexport.errors import GGUFError
from bitexport.families import FAMILIES
from bitexport.families.ternary_decoder import TernaryDecoder
from bitexport.gguf.reader import read_gguf
from bitexport.parity import parity
from bitexport.parity.report import verdict
from bitexport.runtime.session import Session
from tests.support.family_cases import CASES, made
from tests.support.tiny_models import MODEL_CLASSES

PROMPT = "def add(left, right):\n    return left + right\n"


@pytest.mark.parametrize("name", CASES)
def test_a_family_runs_as_in_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    checkpoint = made(case, tmp_path)
    converted = convert(checkpoint, tmp_path / "m.gguf", embed_type="f16")
    assert converted.architecture == case.graph
    assert converted.packing == case.packing
    found = parity(checkpoint, tmp_path / "m.gguf", [PROMPT], tokens=3, layers=True)
    assert found.passed, verdict(found)
    assert found.layers is not None
    assert found.layers.first is None
    assert read_gguf(tmp_path / "m.gguf").metadata["general.architecture"] == case.graph


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("Llama student", "hidden_activation", "gelu", "hidden_activation is 'gelu'"),
        ("Qwen3 student", "attention.qk_norm", "sideways", "attention.qk_norm is 'sideways'"),
        ("Llama student", "attention.sub_norm", False, "wrong number of tensors"),
        ("Qwen3 without SubLN", "attention.sub_norm", True, "'blk.0.attn_sub_norm.weight' not found"),
    ],
)
def test_the_graph_rejects_what_it_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, value: Any, message: str
) -> None:
    honest = TernaryDecoder.metadata
    monkeypatch.setattr(
        TernaryDecoder, "metadata", lambda self, n: {**honest(self, n), f"bitnet-b1.58.{key}": value}
    )
    convert(made(CASES[name], tmp_path), tmp_path / "m.gguf", embed_type="f16")
    with pytest.raises(GGUFError, match=re.escape(message)):
        Session(tmp_path / "m.gguf")


def test_a_case_for_every_family() -> None:
    names = {
        family.name
        for case in CASES.values()
        for family in FAMILIES
        if family.model_class == MODEL_CLASSES[case.architecture].__name__
        and family.gguf_architecture == case.graph
    }
    assert names == {family.name for family in FAMILIES}
