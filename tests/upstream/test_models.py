"""Every architecture is converted as llama.cpp's own converter converts the same weights in float32.

The reference is llama.cpp's converter, run on a float checkpoint with the same values. Tensor for tensor, the
values must be equal, and so must the metadata.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import bitexport
from bitexport.checkpoint import open_checkpoint
from bitexport.convert import convert, from_upstream
from bitexport.gguf.dequantize import dequantize
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import TERNARY_KINDS
from bitexport.upstream.recipe import load_recipe
from tests.support.upstream_models import MODELS
from tests.upstream.conftest import Made

#: Keys that say how the file was made.
OWN = ("bitexport.", "general.file_type")

#: Models whose tokenizer llama.cpp's converter cannot convert here: it wants tokenizer.model, or tokens that
#: only the published tokenizer has. Ours is written for them.
OWN_TOKENIZER = (
    "MiniCPM (BitCPM4), longrope",
    "Phi-3, longrope",
    "GLM-4",
    "GLM-4-MoE",
    "HunYuan-MoE",
)


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def converted(
    name: str, upstream_models: dict[str, Made], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    model = upstream_models[name]
    output = tmp_path_factory.mktemp("converted") / "model.gguf"
    with pytest.MonkeyPatch.context() as patch:
        # test_commands.py runs the program in its own process
        patch.setattr(from_upstream, "read_recipe", lambda checkpoint: load_recipe(model.recipe))  # noqa: ARG005
        report = convert(model.checkpoint, output, embed_type="f16")
    assert report.architecture == MODELS[name].graph
    return output, report.warnings


def test_the_values_are_those_of_llama_cpps_converter(
    name: str, upstream_models: dict[str, Made], converted: tuple[Path, list[str]]
) -> None:
    ours, theirs = read_gguf(converted[0]), read_gguf(upstream_models[name].reference)
    assert {tensor.name for tensor in ours.tensors} == {tensor.name for tensor in theirs.tensors}
    written = {tensor.name: tensor for tensor in ours.tensors}
    for expected in theirs.tensors:
        tensor = written[expected.name]
        assert tensor.shape == expected.shape, tensor.name
        np.testing.assert_array_equal(
            dequantize(ours, tensor), dequantize(theirs, expected), err_msg=tensor.name
        )


def test_every_linear_layer_is_ternary(
    name: str, upstream_models: dict[str, Made], converted: tuple[Path, list[str]]
) -> None:
    kinds = {kind.name for kind in TERNARY_KINDS} - {"f16"}
    tensors = [tensor for tensor in read_gguf(converted[0]).tensors if tensor.type.name in kinds]
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    checkpoint = open_checkpoint(upstream_models[name].checkpoint)
    names = upstream_models[name].ternary
    expected = sum(math.prod(checkpoint.info(each).shape) for each in names)
    if name == "DeepSeek-V2 (MLA)":
        # the first half of each kv_b_proj, which llama.cpp transposes
        expected -= sum(math.prod(checkpoint.info(each).shape) // 2 for each in names if "kv_b_proj" in each)
    assert weights == expected > 0


def test_the_metadata_is_that_of_llama_cpps_converter(
    name: str, upstream_models: dict[str, Made], converted: tuple[Path, list[str]]
) -> None:
    # the types and values of the keys, byte for byte
    ours, theirs = (
        {key: file.raw(key) for key in file.metadata if not key.startswith(OWN)}
        for file in map(read_gguf, (converted[0], upstream_models[name].reference))
    )
    if name in OWN_TOKENIZER:
        assert not any(key.startswith("tokenizer") for key in theirs)
        ours = {key: value for key, value in ours.items() if not key.startswith("tokenizer")}
    assert ours == theirs


def test_it_runs(converted: tuple[Path, list[str]]) -> None:
    model = bitexport.load(converted[0], n_ctx=64, logits_all=True)
    model.eval([5, 6, 7, 8])
    logits = np.array(model.scores[:4])
    model.close()
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_warnings(name: str, converted: tuple[Path, list[str]]) -> None:
    _, warnings = converted
    if name == "Mistral, sliding window":
        assert len(warnings) == 1
        assert "only for contexts of up to 64 tokens" in warnings[0]
    elif name == "Mamba":
        assert len(warnings) == 1
        assert "4 of 8 linear layers are not ternary" in warnings[0]
    elif name == "DeepSeek-V2 (MLA)":
        assert len(warnings) == 1
        assert "2 tensors are written as f16, because llama.cpp transposes" in warnings[0]
    else:
        assert warnings == []
