"""Every architecture that only llama.cpp's own converter knows computes the same in C++ and in PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bitexport.convert import convert, from_upstream
from bitexport.doctor import doctor
from bitexport.errors import UnsupportedError
from bitexport.evaluation.python_side import PythonSide
from bitexport.parity import parity
from bitexport.parity.report import verdict
from bitexport.reference import load_reference
from bitexport.upstream.recipe import load_recipe
from tests.support import upstream_models as support
from tests.support.gguf_files import ByteChange, changed
from tests.support.upstream_models import MODELS
from tests.upstream.conftest import Made

PROMPT = "def add(left, right):\n    return left + right\n"

Converter = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def gguf_of(upstream_models: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> Converter:
    """``gguf_of(name, type)`` -> the file of a model, made once."""
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, kind: str) -> Path:
        if (name, kind) not in made:
            made[name, kind] = tmp_path_factory.mktemp("converted") / "model.gguf"
            with pytest.MonkeyPatch.context() as patch:
                recipe = load_recipe(upstream_models[name].recipe)
                patch.setattr(from_upstream, "read_recipe", lambda _checkpoint: recipe)
                convert(upstream_models[name].checkpoint, made[name, kind], type=kind, embed_type="f16")
        return made[name, kind]

    return make


#: How C++ rounds activations for each type.
GRIDS = {"q2_0": "8 bits per 32 columns", "tq2_0": "8 bits per 256 columns"}

#: llama.cpp divides and transposes a matrix of MLA, so that its activations cannot be aligned.
MLA = "DeepSeek-V2 (MLA)"

#: Its xIELU differs between PyTorch and ggml by a little more than rounding explains.
APERTUS = "Apertus"


def test_latent_attention_is_compared_without_alignment(
    upstream_models: dict[str, Made], gguf_of: Converter
) -> None:
    checkpoint, file = upstream_models[MLA].checkpoint, gguf_of(MLA, "q2_0")
    with pytest.raises(UnsupportedError, match=r"attn_kv_b\.weight is missing.*use --plain"):
        parity(checkpoint, file, [PROMPT])
    assert parity(checkpoint, file, [PROMPT], align=False, min_cosine=0.99).passed


def test_apertus_differs_in_single_activations(upstream_models: dict[str, Made], gguf_of: Converter) -> None:
    found = parity(upstream_models[APERTUS].checkpoint, gguf_of(APERTUS, "tq2_0"), [PROMPT])
    assert found.judged.cosine_min > 0.9999
    assert found.aligned is not None
    assert found.aligned.unexplained <= 10


@pytest.mark.parametrize("name", [name for name in MODELS if name not in (MLA, APERTUS)])
def test_parity(name: str, upstream_models: dict[str, Made], gguf_of: Converter) -> None:
    kind = "q2_0" if MODELS[name].group else "tq2_0"
    found = parity(upstream_models[name].checkpoint, gguf_of(name, kind), [PROMPT], tokens=3)
    assert found.passed, verdict(found)
    assert found.judged.cosine_min > 0.9999
    assert found.activations is not None
    assert found.activations.python == "float32"
    assert found.activations.cpp == GRIDS[kind]


#: The bytes of a TQ2_0 block: 256 codes of 2 bits, then its scale in float16.
BLOCK, CODES = 66, 64


def double_one_scale(data: bytearray, offset: int, _length: int) -> None:
    at = offset + 5 * BLOCK + CODES
    data[at : at + 2] = (np.frombuffer(data, np.float16, 1, at) * np.float16(2)).tobytes()


def change_the_last_expert(data: bytearray, offset: int, length: int) -> None:
    """Make half of its rows zeros."""
    for at in range(offset + length * 7 // 8, offset + length, BLOCK):
        data[at : at + CODES] = bytes([0b01010101]) * CODES


def swap_two_rows(data: bytearray, offset: int, _length: int) -> None:
    first, second = slice(offset, offset + BLOCK), slice(offset + BLOCK, offset + 2 * BLOCK)
    data[first], data[second] = data[second], data[first]


@pytest.mark.parametrize(
    ("name", "tensor", "change", "said"),
    [
        ("Mistral, sliding window", "blk.0.ffn_up.weight", double_one_scale, "the input of blk.0.ffn_down"),
        ("Mistral, sliding window", "blk.0.attn_q.weight", swap_two_rows, "the input of blk.0.attn_output"),
        ("Qwen2-MoE", "blk.1.ffn_up_exps.weight", change_the_last_expert, "blk.1.ffn_down_exps.weight#3"),
        ("Qwen2-MoE", "blk.0.ffn_gate_exps.weight", double_one_scale, "blk.0.ffn_down_exps.weight#0"),
        ("Qwen2-MoE", "blk.0.ffn_up_shexp.weight", double_one_scale, "the input of blk.0.ffn_down_shexp"),
    ],
)
def test_a_fault_is_found(
    upstream_models: dict[str, Made],
    gguf_of: Converter,
    tmp_path: Path,
    name: str,
    tensor: str,
    change: ByteChange,
    said: str,
) -> None:
    file = changed(gguf_of(name, "tq2_0"), tmp_path / "bad.gguf", tensor, change)
    found = parity(upstream_models[name].checkpoint, file, [PROMPT])
    assert not found.passed
    assert said in verdict(found)


def test_experts_with_one_scale(
    upstream_models: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2_S experts run on our kernels, which report the activations of each expert."""

    def one_scale(shape: tuple[int, ...], seed: int, _group: int | None) -> torch.Tensor:
        trits = np.random.default_rng(seed).integers(-1, 2, shape)
        return torch.from_numpy(trits.astype(np.float32) * np.float32(0.0625))

    monkeypatch.setattr(support, "random_ternary", one_scale)
    checkpoint, _, _ = support.made("Qwen2-MoE", tmp_path)
    recipe = load_recipe(upstream_models["Qwen2-MoE"].recipe)
    monkeypatch.setattr(from_upstream, "read_recipe", lambda _checkpoint: recipe)
    convert(checkpoint, tmp_path / "x.gguf", embed_type="f16")
    found = parity(checkpoint, tmp_path / "x.gguf", [PROMPT], tokens=3)
    assert found.passed, verdict(found)
    assert found.aligned is not None
    assert found.aligned.unrecorded == 0
    assert found.activations is not None
    assert found.activations.cpp == "8 bits per token"


def test_doctor(upstream_models: dict[str, Made], gguf_of: Converter, tmp_path: Path) -> None:
    name = "Mistral, linear RoPE"
    checkpoint, file = upstream_models[name].checkpoint, gguf_of(name, "tq2_0")
    bad = changed(file, tmp_path / "bad.gguf", "blk.0.ffn_up.weight", double_one_scale)
    with pytest.MonkeyPatch.context() as patch:
        recipe = load_recipe(upstream_models[name].recipe)
        patch.setattr(from_upstream, "read_recipe", lambda _checkpoint: recipe)
        good, wrong = doctor(checkpoint, file), doctor(checkpoint, bad)
    assert good.skipped == {
        "float": "a pre-dequantized checkpoint has no float weights",
        "both": "activations were not quantized in training",
    }
    assert good.facts.conversion_error is None
    assert good.facts.logit_difference is None
    assert good.facts.examination is not None
    assert good.facts.examination.differences == good.facts.examination.metadata == []
    assert wrong.facts.logit_difference is not None
    assert wrong.facts.examination is not None
    assert wrong.facts.examination.differences == [
        "blk.0.ffn_up.weight differs in 1 of 512 rows, the first is row 5"
    ]


def test_master_weights(upstream_models: dict[str, Made], tmp_path: Path) -> None:
    """A quantization_config says that activations were quantized in training, one step per token."""
    name = "Mistral, linear RoPE"
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(upstream_models[name].checkpoint, checkpoint)
    support.as_master(checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        recipe = load_recipe(upstream_models[name].recipe)
        patch.setattr(from_upstream, "read_recipe", lambda _checkpoint: recipe)
        convert(checkpoint, tmp_path / "x.gguf", embed_type="f16")
    found = parity(checkpoint, tmp_path / "x.gguf", [PROMPT], tokens=3)
    assert found.passed, verdict(found)
    assert found.judged.cosine_min > 0.999999
    assert found.activations is not None
    assert found.activations.python == found.activations.cpp == "8 bits per token"


def test_eval_runs_the_same_model(upstream_models: dict[str, Made]) -> None:
    checkpoint = upstream_models["Qwen2-MoE"].checkpoint
    side = PythonSide("student", checkpoint)
    assert (side.kind, side.n_vocab, side.n_ctx) == ("ternary", 512, 256)
    reference = load_reference(checkpoint)
    ids = side.encode(PROMPT, True)
    with side.open(64) as runner:
        answers = runner.greedy([ids, ids[:4]], frozenset(), 4, lambda _event: None)
    expected: list[int] = []
    following = ids
    for _ in range(4):
        following = [int(reference.feed(following).argmax())]
        expected += following
    assert answers[0] == expected
