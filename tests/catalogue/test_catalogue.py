"""Every model of the catalogue, in its layout at a small width: converted, loaded, compared with PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitexport.catalogue import MODELS
from bitexport.convert import convert
from bitexport.gguf.reader import read_gguf
from bitexport.parity import parity
from bitexport.parity.embedding import embedding_parity
from bitexport.parity.report import verdict
from tests.support.embedding_models import DOCUMENTS, embedding_checkpoint
from tests.support.published_layouts import save_published, small_config

PROMPT = "def add(left, right):\n    return left + right\n"

#: Sizes of one layout differ in numbers only, so each layout is tested once.
LAYOUTS = {
    f"{model.architecture}, {model.storage.name.lower()}, {model.graph}, {model.tokenizer}": model
    for model in reversed(MODELS)
}

EMBEDDING_MODELS = ("Qwen3Model", "Gemma3TextModel")
DECODERS = {name: model for name, model in LAYOUTS.items() if model.architecture not in EMBEDDING_MODELS}


@pytest.mark.parametrize("architecture", EMBEDDING_MODELS)
def test_a_published_embedding_model_is_converted_exactly(architecture: str, tmp_path: Path) -> None:
    (model,) = [model for model in LAYOUTS.values() if model.architecture == architecture]
    checkpoint = embedding_checkpoint(tmp_path / model.folder, architecture)
    assert convert(checkpoint, tmp_path / "m.gguf").architecture == model.graph
    assert embedding_parity(checkpoint, tmp_path / "m.gguf", DOCUMENTS[:2]).passed


@pytest.mark.parametrize("layout", DECODERS)
def test_a_published_layout_is_converted_exactly(layout: str, tmp_path: Path) -> None:
    model = LAYOUTS[layout]
    checkpoint = save_published(model, tmp_path / model.folder)
    report = convert(checkpoint, tmp_path / "m.gguf")
    assert report.architecture == model.graph
    found = parity(checkpoint, tmp_path / "m.gguf", [PROMPT], tokens=3)
    assert found.passed, verdict(found)


@pytest.mark.parametrize("layout", DECODERS)
def test_types_and_size_are_those_that_convert_writes(layout: str, tmp_path: Path) -> None:
    model = LAYOUTS[layout]
    convert(save_published(model, tmp_path / model.folder), tmp_path / "m.gguf")
    small = replace(model, config=small_config(model))
    file = read_gguf(tmp_path / "m.gguf")
    blocks = [tensor for tensor in file.tensors if tensor.name.startswith("blk.0.")]
    linear = {tensor.type for tensor in blocks if len(tensor.shape) == 2}
    assert linear == set(small.types())
    written = sum(tensor.nbytes for tensor in file.tensors)
    assert small.output_bytes() == pytest.approx(written, rel=0.01)


def test_repositories_are_listed_once() -> None:
    names = [model.repository for model in MODELS]
    assert len(set(names)) == len(names)


def test_every_published_size_is_a_real_model() -> None:
    for model in MODELS:
        assert all(out > 0 and into % 4 == 0 for out, into in model.linear_shapes())
        assert model.output_bytes() > 40 << 20
