"""Parity passes on files that convert writes, and fails with the right message on planted faults."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch

from bitexport.convert import convert
from bitexport.errors import GGUFError, TokenizerError, UnsupportedError, UsageError
from bitexport.gguf.packers import PACKERS
from bitexport.gguf.reader import GGUFTensor, read_gguf
from bitexport.gguf.types import TYPES, TensorType
from bitexport.parity import parity
from bitexport.parity.greedy import continue_both
from bitexport.parity.report import ParityReport, verdict
from bitexport.progress import ProgressEvent
from bitexport.runtime.session import Session
from bitexport.text.prompts import built_in_prompts, read_prompts
from tests.support.decoding import greedy
from tests.support.gguf_files import changed, double_scale, rewritten
from tests.support.scale_groups import with_groups
from tests.support.tiny_models import PACKINGS, Shape, tiny_checkpoint

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
PROMPTS = ["def add(left, right):\n    return left + right\n", "The quick brown fox", "x"]

CONTRACT = {
    "prompts",
    "positions",
    "cosine_min",
    "cosine_mean",
    "top1_agreement",
    "kl_mean",
    "max_abs_diff",
    "greedy_match",
    "passed",
}


@pytest.fixture(scope="module")
def report(checkpoint_of: Maker, gguf_of: Maker) -> ParityReport:
    return parity(
        checkpoint_of("packed-multiply", dtype=torch.bfloat16),
        gguf_of("packed-multiply", dtype=torch.bfloat16),
        PROMPTS,
        tokens=8,
        align=True,
        measure_noise_floor=True,
    )


def test_converted_file_passes(report: ParityReport) -> None:
    assert report.passed
    assert report.aligned is not None
    assert report.aligned.agreement.cosine_min > 0.99999
    assert report.aligned.unexplained == 0
    assert verdict(report).startswith("C++ computes what PyTorch computes")


def test_every_position_is_counted(report: ParityReport) -> None:
    assert report.plain.positions == sum(result.tokens for result in report.prompts)
    assert report.plain.cosine_min == min(result.agreement.cosine_min for result in report.prompts)


def test_json_holds_the_contract(report: ParityReport) -> None:
    document = json.loads(json.dumps(report.to_json()))
    assert document.keys() >= CONTRACT
    assert document["prompts"] == len(document["rows"]) == 3
    assert document["passed"] is True
    assert 0 <= document["greedy_match"] <= 1


def test_perplexity_is_about_the_same(checkpoint_of: Maker, gguf_of: Maker) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 12
    found = parity(
        checkpoint_of("packed-multiply"), gguf_of("packed-multiply"), PROMPTS[:1], text=text, align=True
    )
    assert found.perplexity is not None
    assert found.perplexity.tokens > 100
    # To a random model any text is so unlikely that little in the logarithm is much in the perplexity.
    assert abs(math.log(found.perplexity.cpp / found.perplexity.python)) < 0.1
    if not found.passed:
        assert "perplexity differs by" in verdict(found)


def test_noise_floor_is_below_the_embedding_steps(report: ParityReport) -> None:
    assert report.noise_floor is not None
    assert 0.99 < report.noise_floor.cosine_min < 1


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("architecture", ["bitnet", "llama"])
def test_every_packing_and_family(
    checkpoint_of: Maker, gguf_of: Maker, packing: str, architecture: str
) -> None:
    options = {"architecture": architecture}
    found = parity(checkpoint_of(packing, **options), gguf_of(packing, **options), PROMPTS[:2], align=True)
    assert found.passed, verdict(found)
    assert found.judged.cosine_min > 0.99999


@pytest.mark.parametrize(
    "shape",
    [
        Shape(hidden=576, ffn=1536, layers=1, heads=9, kv_heads=3, vocab=416),
        Shape(hidden=128, ffn=384, layers=3, heads=8, kv_heads=8, vocab=416),
        Shape(hidden=256, ffn=640, layers=2, heads=8, kv_heads=1, vocab=416),
    ],
    ids=["in=576", "no grouping", "one key-value head"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_random_shapes(tmp_path: Path, shape: Shape, tied: bool) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", shape=shape, tied=tied, seed=3)
    convert(checkpoint, tmp_path / "x.gguf", embed_type="f16")
    found = parity(checkpoint, tmp_path / "x.gguf", PROMPTS[:2], align=True)
    assert found.passed, verdict(found)
    assert found.judged.cosine_min > 0.99999


@pytest.mark.parametrize("embed_type", ["q6_k", "q5_k", "q4_k", "q8_0"])
def test_quantized_embeddings_are_named_as_the_cause(
    checkpoint_of: Maker, gguf_of: Maker, embed_type: str
) -> None:
    checkpoint, file = checkpoint_of("packed-multiply"), gguf_of("packed-multiply", embed_type=embed_type)
    found = parity(checkpoint, file, PROMPTS[:1], min_cosine=0.9999, align=False)
    assert not found.passed
    assert found.aligned is not None
    assert found.aligned.agreement.cosine_min > 0.9999
    assert verdict(found).startswith("No mistake, but below the threshold")
    assert parity(checkpoint, file, PROMPTS[:1], min_cosine=0.9999).passed


def test_file_of_another_checkpoint(checkpoint_of: Maker, gguf_of: Maker) -> None:
    found = parity(checkpoint_of("packed-multiply"), gguf_of("packed-multiply", seed=9), PROMPTS[:1])
    assert not found.passed
    assert "Was the file converted from this checkpoint?" in verdict(found)


def test_other_tokenizer(checkpoint_of: Maker, gguf_of: Maker) -> None:
    other = gguf_of("packed-multiply", tokenizer="llama3")
    with pytest.raises(TokenizerError, match="prompt 2 is tokenized differently: token") as caught:
        parity(checkpoint_of("packed-multiply"), other, ["x", "1234567 12345 it's 1234"])
    assert "\n" not in str(caught.value)


def test_other_vocabulary(checkpoint_of: Maker, gguf_of: Maker) -> None:
    other = gguf_of("packed-multiply", shape=Shape(vocab=640))
    with pytest.raises(GGUFError, match="vocabulary of 640 tokens, the checkpoint of 512"):
        parity(checkpoint_of("packed-multiply"), other, ["x"])


def test_prompt_that_does_not_fit(checkpoint_of: Maker, gguf_of: Maker) -> None:
    with pytest.raises(UsageError, match=r"prompt 2 .* exceed the model's context of 256"):
        parity(checkpoint_of("packed-multiply"), gguf_of("packed-multiply"), ["x", "word " * 500])


@pytest.mark.parametrize("threshold", [float("nan"), 1.5, -2.0])
def test_a_threshold_that_is_not_a_cosine(
    threshold: float, checkpoint_of: Maker, gguf_of: Maker, run_cli: Cli
) -> None:
    paths = checkpoint_of("packed-multiply"), gguf_of("packed-multiply")
    with pytest.raises(UsageError, match=f"min_cosine is {threshold}; expected a number from -1 to 1"):
        parity(*paths, ["x"], min_cosine=threshold)
    assert run_cli("parity", *paths, "--min-cosine", threshold, "--prompt", "x").returncode == 2


def test_no_prompts(checkpoint_of: Maker, gguf_of: Maker) -> None:
    with pytest.raises(UsageError, match="no prompts"):
        parity(checkpoint_of("packed-multiply"), gguf_of("packed-multiply"), [])


def test_progress(checkpoint_of: Maker, gguf_of: Maker) -> None:
    events: list[ProgressEvent] = []
    parity(
        checkpoint_of("packed-multiply"),
        gguf_of("packed-multiply"),
        PROMPTS,
        min_cosine=0,
        align=False,
        progress=events.append,
    )
    assert [event.done for event in events] == [0, 0, 1, 2]
    assert {event.total for event in events} == {3}


class _Table:
    """A model that returns one given row of logits per step, for any input."""

    def __init__(self, *rows: Sequence[float]) -> None:
        self.rows = [np.array(row, np.float32) for row in rows]
        self.step = 0

    def clear(self) -> None:
        self.step = 0

    def feed(self, _ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        self.step += 1
        return self.rows[self.step - 1]


@pytest.mark.parametrize(("gap", "near"), [(0.01, True), (0.5, False)])
def test_greedy_divergence_is_explained(gap: float, near: bool) -> None:
    python = _Table([1, 0, 0], [0, 2, 2 - gap])
    cpp = _Table([1, 0, 0], [0, 2, 2 + gap])
    found = continue_both(python, cpp, [7], 2)
    assert found.tokens == [0]
    assert found.divergence is not None
    assert (found.divergence.step, found.divergence.python_token, found.divergence.cpp_token) == (1, 1, 2)
    assert found.divergence.python_gap == pytest.approx(gap, abs=1e-5)
    assert found.divergence.near_tie is near


@pytest.mark.parametrize("align", [True, False])
def test_greedy_continuation_is_the_same_either_way(
    checkpoint_of: Maker, gguf_of: Maker, align: bool
) -> None:
    checkpoint, file = checkpoint_of("packed-multiply"), gguf_of("packed-multiply")
    found = parity(checkpoint, file, PROMPTS, tokens=6, align=align)
    assert found.greedy_match == 1.0
    with Session(file, n_ctx=128) as session:
        for result in found.prompts:
            assert result.continuation is not None
            assert result.continuation.tokens == greedy(session, session.tokenize(result.prompt), 6)


@pytest.mark.parametrize("kind", ["q2_0", "tq2_0", "tq1_0", "f16"])
def test_every_type(checkpoint_of: Maker, tmp_path: Path, kind: str) -> None:
    checkpoint = checkpoint_of("packed-multiply")
    convert(checkpoint, tmp_path / "x.gguf", type=kind, embed_type="f16")
    found = parity(checkpoint, tmp_path / "x.gguf", PROMPTS[:2], tokens=4, layers=True)
    assert found.passed, verdict(found)
    assert found.judged.cosine_min > 0.999999


@pytest.mark.parametrize(
    ("size", "kind", "grid"),
    [(64, "q2_0", "8 bits per 32 columns"), (256, "tq1_0", "8 bits per 256 columns"), (32, "f16", "float16")],
    ids=["groups of 64", "groups of 256", "groups of 32"],
)
def test_scales_per_group(checkpoint_of: Maker, tmp_path: Path, size: int, kind: str, grid: str) -> None:
    """As Bonsai and TriLM are saved: floats without quantization_config."""
    source = checkpoint_of("master", architecture="llama")
    checkpoint = with_groups(source, tmp_path / "model", size, dtype=torch.float16)
    report = convert(checkpoint, tmp_path / "x.gguf", embed_type="f16")
    assert kind in {tensor.type.name for tensor in read_gguf(tmp_path / "x.gguf").tensors}, report
    found = parity(checkpoint, tmp_path / "x.gguf", PROMPTS[:2], tokens=4, layers=True)
    assert found.passed, verdict(found)
    assert found.judged.cosine_min > 0.99999
    assert found.aligned is not None
    assert (found.aligned.compared > 0, found.aligned.unrecorded) == (kind != "f16", 0)
    assert found.activations is not None
    assert (found.activations.python, found.activations.cpp) == ("float32", grid)


def test_the_scale_of_one_group_is_wrong(checkpoint_of: Maker, tmp_path: Path) -> None:
    source = checkpoint_of("master", architecture="llama")
    checkpoint = with_groups(source, tmp_path / "model", 64, dtype=torch.float16)
    convert(checkpoint, tmp_path / "x.gguf", embed_type="f16")

    def double(data: bytearray, offset: int, _length: int) -> None:  # the scale begins a block of 18 bytes
        data[offset : offset + 2] = (np.frombuffer(data, np.float16, 1, offset) * np.float16(2)).tobytes()

    file = changed(tmp_path / "x.gguf", tmp_path / "bad.gguf", "blk.0.ffn_up.weight", double)
    found = parity(checkpoint, file, PROMPTS[:2], layers=True)
    assert not found.passed
    assert "at the input of blk.0.ffn_down.weight" in verdict(found)
    assert found.layers is not None
    assert found.layers.first == "ffn_up-0"


def test_a_type_whose_rounding_is_not_known(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path) -> None:
    def as_bfloat16(tensor: GGUFTensor, kind: TensorType, data: np.ndarray) -> tuple[TensorType, np.ndarray]:
        if tensor.name != "blk.1.ffn_up.weight":
            return kind, data
        values = PACKERS["i2_s"].unpack(data, (tensor.shape[0], tensor.shape[1])).dequantize()
        return TYPES["bf16"], (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(-1)

    file = rewritten(gguf_of("packed-multiply"), tmp_path / "x.gguf", change=as_bfloat16)
    with pytest.raises(UnsupportedError, match=r"blk\.1\.ffn_up\.weight is bf16.*--plain"):
        parity(checkpoint_of("packed-multiply"), file, PROMPTS[:1])
    assert parity(checkpoint_of("packed-multiply"), file, PROMPTS[:1], min_cosine=0.9, align=False).passed


# Prompts.


def test_built_in_prompts() -> None:
    prompts = built_in_prompts()
    assert len(prompts) == len(set(prompts)) >= 20


def test_prompts_one_per_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("first\n\n  second \n   \n", encoding="utf-8")
    assert read_prompts(file) == ["first", "  second "]


def test_prompts_as_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a\\nb"\n\n{"prompt": "c"}\n{"text": "d", "id": 3}\n', encoding="utf-8")
    assert read_prompts(file) == ["a\nb", "c", "d"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "no prompt; write one per line"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.jsonl", b'"ok"\n{oops\n', "line 2"),
        ("a.jsonl", b'{"id": 3}\n', "line 1: no text"),
        ("a.jsonl", b"[1]\n", "line 1: no text"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_prompts(tmp_path / name)


def test_missing_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_prompts(tmp_path / "none.txt")


# The command.


def test_command_in_json(checkpoint_of: Maker, gguf_of: Maker, run_cli: Cli) -> None:
    checkpoint, file = checkpoint_of("packed-multiply"), gguf_of("packed-multiply")
    result = run_cli(
        "parity", checkpoint, file, "--prompt", "x y", "--prompt", "z", "--tokens", "2", "--json"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    assert document.keys() >= CONTRACT
    assert document["prompts"] == 2


def test_command_below_threshold(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path, run_cli: Cli) -> None:
    file = changed(
        gguf_of("packed-multiply"), tmp_path / "bad.gguf", "blk.0.attn_output.weight", double_scale
    )
    (tmp_path / "prompts.txt").write_text("one prompt\nand another\na prompt longer than its column\n")
    result = run_cli("parity", checkpoint_of("packed-multiply"), file, "--prompts", tmp_path / "prompts.txt")
    assert result.returncode == 3
    assert "FAIL" in result.stdout
    assert "1 one prompt" in result.stdout
    assert "2 and another" in result.stdout
    assert "3 a prompt lon…" in result.stdout
    tables = [line for line in result.stdout.splitlines() if line.startswith(" ")]
    assert len(tables) > 10
    assert max(map(len, tables)) <= 80
    assert result.stderr.startswith("failed: C++ and PyTorch disagree")
    assert result.stderr.count("\n") == 1


def test_command_with_perplexity(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. ")
    result = run_cli(
        "parity", checkpoint_of("packed-multiply"), gguf_of("packed-multiply"), "--prompt", "x",
        "--text", tmp_path / "text.txt",
    )  # fmt: skip
    assert "perplexity of" in result.stdout
    assert result.returncode in (0, 3)  # a random model's perplexity says nothing


def test_a_missing_file_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"none\.gguf: cannot be read"):
        parity(tmp_path / "nothing", tmp_path / "none.gguf")
