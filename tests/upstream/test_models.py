"""Every architecture is converted as llama.cpp's own converter converts the same weights in float32.

The reference is llama.cpp's converter, run on a float checkpoint with the same values. Tensor for tensor, the
values must be equal, and so must the metadata.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import bitexport
from bitexport.checkpoint import open_checkpoint
from bitexport.convert import convert, from_upstream
from bitexport.upstream.recipe import load_recipe
from tests.support.upstream_models import MODELS
from tests.upstream.conftest import Made

#: Keys that say how the file was made.
OWN = ("GGUF.", "bitexport.", "general.file_type")

#: Models whose tokenizer llama.cpp's converter cannot convert here: it wants tokenizer.model, or tokens that
#: only the published tokenizer has. Ours is written for them.
OWN_TOKENIZER = ("MiniCPM (BitCPM4), longrope", "Phi-3, longrope", "GLM-4", "HunYuan-MoE")


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
        report = convert(model.checkpoint, output, type="tq2_0", embed_type="f16")
    assert report.architecture == MODELS[name].graph
    return output, report.warnings


def test_the_values_are_those_of_llama_cpps_converter(
    name: str, upstream_models: dict[str, Made], converted: tuple[Path, list[str]]
) -> None:
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(converted[0]).tensors}
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(upstream_models[name].reference).tensors}
    assert set(ours) == set(theirs)
    for tensor, expected in theirs.items():
        assert list(ours[tensor].shape) == list(expected.shape), tensor
        values = gguf.dequantize(ours[tensor].data, ours[tensor].tensor_type)
        np.testing.assert_array_equal(values.reshape(-1), expected.data.reshape(-1), err_msg=tensor)


def test_every_linear_layer_is_ternary(
    name: str, upstream_models: dict[str, Made], converted: tuple[Path, list[str]]
) -> None:
    weights = sum(
        int(np.prod(tensor.shape))
        for tensor in gguf.GGUFReader(converted[0]).tensors
        if tensor.tensor_type == gguf.GGMLQuantizationType.TQ2_0
    )
    checkpoint = open_checkpoint(upstream_models[name].checkpoint)
    expected = sum(int(np.prod(checkpoint.info(each).shape)) for each in upstream_models[name].ternary)
    assert weights == expected > 0


def test_the_metadata_is_that_of_llama_cpps_converter(
    name: str, upstream_models: dict[str, Made], converted: tuple[Path, list[str]]
) -> None:
    ours, theirs = (
        {key: field for key, field in gguf.GGUFReader(path).fields.items() if not key.startswith(OWN)}
        for path in (converted[0], upstream_models[name].reference)
    )
    if name in OWN_TOKENIZER:
        assert not any(key.startswith("tokenizer") for key in theirs)
        ours = {key: field for key, field in ours.items() if not key.startswith("tokenizer")}
    assert set(ours) == set(theirs)
    for key, field in theirs.items():
        assert ours[key].types == field.types, key
        assert ours[key].contents() == field.contents(), key


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
    else:
        assert warnings == []
