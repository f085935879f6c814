"""``parity --layers`` names the broken step, and no step on a correct file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from bitexport.convert import convert
from bitexport.parity import parity
from bitexport.parity.layers.result import LayersReport
from bitexport.parity.report import ParityReport, verdict
from tests.support.family_cases import CASES, made
from tests.support.gguf_files import (
    ByteChange,
    changed,
    double_floats,
    double_halves,
    double_scale,
    flip_one_trit,
    halve_gain,
    invert_scale,
    negate_a_row,
    with_float,
    zero,
)

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
PROMPTS = ["def add(left, right):\n    return left + right\n", "The quick brown fox"]


def layers_of(checkpoint: Path, file: Path, **options: Any) -> tuple[ParityReport, LayersReport]:
    found = parity(checkpoint, file, PROMPTS, layers=True, **options)
    assert found.layers is not None
    return found, found.layers


@pytest.mark.parametrize(
    ("tensor", "change", "first", "evidence"),
    [
        ("blk.1.ffn_up.weight", invert_scale, "ffn_up-1", "times PyTorch's, so a scale is off"),
        ("blk.1.attn_q.weight", invert_scale, "q-1", "times PyTorch's, so a scale is off"),
        ("blk.0.attn_output.weight", invert_scale, "attn_out-0", "so a scale is off"),
        ("blk.1.attn_sub_norm.weight", zero, "attn_sub_norm-1", "all C++ values are zero"),
        ("blk.0.ffn_sub_norm.weight", zero, "ffn_sub_norm-0", "check blk.0.ffn_sub_norm.weight"),
        (
            "blk.0.attn_norm.weight",
            halve_gain,
            "attn_norm-0",
            "the C++ values are 0.5 times PyTorch's, so a scale is off",
        ),
        (
            "blk.0.ffn_gate.weight",
            flip_one_trit,
            "ffn_gate-0",
            "1 of 512 values differ, the first at index 0",
        ),
        (
            "blk.1.attn_k.weight",
            double_scale,
            "k-1",
            "the C++ values are 2 times PyTorch's, so a scale is off",
        ),
        ("blk.1.ffn_down.weight", double_scale, "ffn_out-1", "check blk.1.ffn_down.weight"),
        ("output_norm.weight", double_floats, "result_norm", "check output_norm.weight"),
        (
            "token_embd.weight",
            double_halves,
            "embd",
            "the C++ values are 2 times PyTorch's, so a scale is off",
        ),
        ("output.weight", negate_a_row, "result_output", "row 0 of the output head is off by 200.0%"),
    ],
)
def test_the_broken_step_is_named(
    checkpoint_of: Maker,
    gguf_of: Maker,
    tmp_path: Path,
    tensor: str,
    change: ByteChange,
    first: str,
    evidence: str,
) -> None:
    file = changed(gguf_of("packed-multiply", tied=False), tmp_path / "bad.gguf", tensor, change)
    report, layers = layers_of(checkpoint_of("packed-multiply", tied=False), file)
    assert layers.first == first
    assert [step.name for step in layers.diverged][1:] == []  # no step that only inherits the fault
    assert f"first step that diverges is {first}" in layers.describe()
    assert evidence in layers.describe()
    assert not report.passed
    assert evidence in verdict(report)


@pytest.mark.parametrize("architecture", ["bitnet", "llama"])
def test_another_rope_base(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path, architecture: str) -> None:
    """It shows at q_rope, from the second token on; keys are wrong as well, in every block."""
    key = {"bitnet": "bitnet-b1.58", "llama": "llama"}[architecture] + ".rope.freq_base"
    good = gguf_of("packed-multiply", architecture=architecture)
    file = with_float(good, tmp_path / "bad.gguf", key, 20000.0)
    _, layers = layers_of(checkpoint_of("packed-multiply", architecture=architecture), file)
    assert layers.first == "q_rope-0"
    assert [step.name for step in layers.diverged] == ["q_rope-0", "k_rope-0", "q_rope-1", "k_rope-1"]
    assert "tokens before index 1 agree, so the error depends on the position" in layers.describe()
    assert "rope.freq_base" in layers.describe()


def test_a_scale_that_subln_divides_out(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path) -> None:
    """The logits do not show it, but the step does, and the check fails."""
    file = changed(gguf_of("packed-multiply"), tmp_path / "bad.gguf", "blk.0.attn_v.weight", double_scale)
    assert parity(checkpoint_of("packed-multiply"), file, PROMPTS).passed
    report, layers = layers_of(checkpoint_of("packed-multiply"), file)
    assert report.judged.cosine_min > 0.99999
    assert not report.passed
    assert verdict(report).startswith("A step is wrong although the logits agree")
    assert layers.first == "v-0"
    assert "the C++ values are 2 times PyTorch's" in verdict(report)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("packing", ["master", "packed-divide"])
@pytest.mark.parametrize("architecture", ["bitnet", "llama"])
def test_a_good_file(
    checkpoint_of: Maker, gguf_of: Maker, architecture: str, packing: str, align: bool
) -> None:
    options = {"architecture": architecture}
    checkpoint, file = checkpoint_of(packing, **options), gguf_of(packing, "q6_k", **options)
    report, layers = layers_of(checkpoint, file, align=align, min_cosine=0.99)
    assert layers.first is None
    assert layers.unnamed == []
    sub_norms = {"attn_sub_norm", "ffn_sub_norm"}
    gemma = {"q_norm", "k_norm", "attn_post_norm", "ffn_post_norm"}
    assert set(layers.absent) == gemma | (sub_norms if architecture == "llama" else set())
    assert "no step diverges" in layers.describe()
    # float error is below a tenth of the tolerance
    inside = [step for step in layers.steps if step.name not in ("embd", "result_output")]
    assert max(step.isolated.excess for step in inside) < 0.1
    assert report.passed
    names = [step.name for step in layers.steps]
    assert names[0] == "embd"
    assert names[-2:] == ["result_norm", "result_output"]
    assert names.index("q-1") < names.index("q_rope-1") < names.index("attn_heads-1") < names.index("l_out-1")


def test_without_alignment_the_runs_drift_apart(checkpoint_of: Maker, gguf_of: Maker) -> None:
    """The isolated comparison of each step does not depend on alignment."""
    checkpoint, file = checkpoint_of("packed-multiply"), gguf_of("packed-multiply", "q6_k")
    _, layers = layers_of(checkpoint, file, align=False, min_cosine=0)
    last = layers.steps[-2]
    assert last.aligned is None
    assert last.plain.cosine_gap > 1e-5
    assert last.isolated.cosine_gap < 1e-12


def test_everything_a_step_depends_on_is_named(tmp_path: Path) -> None:
    """A norm before a layer is part of the layer's step, and its epsilon is part of a norm's step."""
    checkpoint = made(CASES["2B4T with use_rms_norm"], tmp_path)
    convert(checkpoint, tmp_path / "good.gguf", embed_type="f16")
    norm = "blk.1.attn_q_norm_in.weight"
    _, layers = layers_of(
        checkpoint, changed(tmp_path / "good.gguf", tmp_path / "bad.gguf", norm, double_floats)
    )
    assert layers.first == "q-1"
    assert f"check blk.1.attn_q.weight or {norm}" in layers.describe()
    key = "bitnet-b1.58.attention.layer_norm_rms_epsilon"
    _, layers = layers_of(checkpoint, with_float(tmp_path / "good.gguf", tmp_path / "eps.gguf", key, 1e-2))
    assert layers.first == "attn_norm-0"
    assert "check blk.0.attn_norm.weight or attention.layer_norm_rms_epsilon" in layers.describe()


def test_only_the_first_tokens_of_a_long_prompt(
    checkpoint_of: Maker, gguf_of: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitexport.parity.layers.compare.MAX_TOKENS", 5)
    _, layers = layers_of(checkpoint_of("packed-multiply"), gguf_of("packed-multiply"))
    assert layers.tokens == 10
    assert layers.tokens_given > 10
    assert {step.isolated.tokens for step in layers.steps} == {10}


def test_the_command(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path, run_cli: Cli) -> None:
    file = changed(gguf_of("packed-multiply"), tmp_path / "bad.gguf", "blk.1.attn_v.weight", double_scale)
    command = ("parity", checkpoint_of("packed-multiply"), file, "--prompt", PROMPTS[1], "--layers")
    done = run_cli(*command)
    assert done.returncode == 3, done.stderr
    assert "steps: the first step that diverges is v-1" in done.stdout
    assert "not in this model: q_norm, k_norm" in done.stdout
    assert done.stderr.startswith("failed: A step is wrong although the logits agree")
    document = json.loads(run_cli(*command, "--json").stdout)
    assert document["layers"]["first"] == "v-1"
    steps = {step["name"]: step for step in document["layers"]["steps"]}
    assert [name for name, step in steps.items() if step["parted"]] == ["v-1"]
    assert steps["v-1"]["own"]["length_ratio"] == pytest.approx(2)
