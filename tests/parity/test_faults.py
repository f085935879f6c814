"""Parity fails and names the affected layer when one tensor of the file is broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bitexport.parity import parity
from bitexport.parity.report import verdict
from bitexport.runtime.session import Session
from tests.support.gguf_files import (
    ByteChange,
    changed,
    double_floats,
    double_halves,
    double_scale,
    flip_one_trit,
    halve_gain,
    negate_a_row,
    scale_by,
)

Maker = Callable[..., Path]
PROMPTS = ["def add(left, right):\n    return left + right\n"]


@pytest.mark.parametrize(
    ("tensor", "change", "first"),
    [
        ("blk.0.attn_v.weight", double_scale, None),  # SubLN divides it out, so nothing shows
        ("blk.0.ffn_up.weight", flip_one_trit, "blk.0.ffn_down.weight"),
        ("blk.1.attn_norm.weight", halve_gain, "blk.1.attn_output.weight"),  # queries and keys shrink
        ("blk.1.attn_k.weight", double_scale, "blk.1.attn_output.weight"),
        ("blk.0.attn_output.weight", double_scale, "blk.0.ffn_gate.weight"),
    ],
)
def test_planted_fault(
    checkpoint_of: Maker,
    gguf_of: Maker,
    tmp_path: Path,
    tensor: str,
    change: ByteChange,
    first: str | None,
) -> None:
    file = changed(gguf_of("packed-multiply"), tmp_path / "bad.gguf", tensor, change)
    found = parity(checkpoint_of("packed-multiply"), file, PROMPTS[:1], align=True)
    if first is None:
        assert found.judged.cosine_min > 0.99999
        return
    assert not found.passed
    assert found.aligned is not None
    assert found.aligned.first_unexplained == first
    assert verdict(found).startswith("C++ and PyTorch disagree")


@pytest.mark.parametrize(
    ("tensor", "change", "said"),
    [
        ("token_embd.weight", double_halves, "of the token embedding is off by 100.0%"),
        ("token_embd.weight", negate_a_row, "row 0 of the token embedding is off by 200.0%"),
        ("output.weight", negate_a_row, "row 0 of the output head is off by 200.0%"),
        ("output.weight", double_halves, "of the output head is off by 100.0%"),
        ("output_norm.weight", double_floats, "aligned logits differ by 100"),
        ("blk.1.ffn_down.weight", scale_by(1.02), "C++ and PyTorch disagree"),
    ],
)
def test_faults_that_no_ternary_layer_sees(
    checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path, tensor: str, change: ByteChange, said: str
) -> None:
    """The embedding, the head, and everything between the last ternary layer and the logits."""
    file = changed(gguf_of("packed-multiply", tied=False), tmp_path / "bad.gguf", tensor, change)
    found = parity(checkpoint_of("packed-multiply", tied=False), file, PROMPTS)
    assert not found.passed
    assert said in verdict(found)


def test_a_mistake_in_decode_alone(
    checkpoint_of: Maker, gguf_of: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Session.feed

    def wrong(self: Session, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        return -honest(self, ids)

    monkeypatch.setattr(Session, "feed", wrong)
    found = parity(checkpoint_of("packed-multiply"), gguf_of("packed-multiply"), PROMPTS, tokens=4)
    assert not found.passed
    assert verdict(found).startswith("C++ and PyTorch disagree")
