"""Which files of a repository are downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bitexport.errors import HubError
from bitexport.hub import HubName, Want
from bitexport.hub.contents import FIRST, Selection, select

NAME = HubName("acme/tiny")

#: A repository with everything that published ones have.
CROWDED = (
    *("README.md", "LICENSE", ".gitattributes", "config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "merges.txt", "vocab.json"),
    *("special_tokens_map.json", "chat_template.jinja", "trainer_state.json", "modeling_tiny.py"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"),
    *("onnx/model.onnx", "onnx/config.json", "model.onnx", "original/consolidated.00.pth", "tiny.gguf"),
    *("original/params.json", "training_args.bin", "optimizer.pt", "figure.png"),
)


def choose(
    names: tuple[str, ...] | Mapping[str, Any], want: Want, folder: Path, name: HubName = NAME
) -> Selection:
    """The selection from files of these names; a mapping also has the contents of JSON files."""
    if isinstance(names, Mapping):
        for path in FIRST:
            if names.get(path) is not None:
                (folder / path).write_text(json.dumps(names[path]))
    return select(name, want, dict.fromkeys(names, 1_500_000), folder)


@pytest.mark.parametrize("want", ["checkpoint", "model"])
def test_a_checkpoint_without_what_it_does_not_need(want: Want, tmp_path: Path) -> None:
    chosen = choose(CROWDED, want, tmp_path)
    assert chosen.path == "."
    assert set(chosen.files) == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "merges.txt"),
        *("tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json", "special_tokens_map.json"),
        *("chat_template.jinja", "trainer_state.json"),
    }


def test_shards_that_the_index_names(tmp_path: Path) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": None for n in (1, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {
        **shards,
        "model.safetensors.index.json": index,
        "config.json": {},
        "consolidated.safetensors": None,
        "pytorch_model.bin": None,
    }
    assert set(choose(files, "checkpoint", tmp_path).files) == {
        *shards,
        "model.safetensors.index.json",
        "config.json",
    }
    del files["model-00002-of-00002.safetensors"]
    with pytest.raises(HubError, match=r"names model-00002-of-00002.safetensors, which is not in the repo"):
        choose(files, "checkpoint", tmp_path)


def test_pickles_only_where_there_are_no_safetensors(tmp_path: Path) -> None:
    files = {
        "pytorch_model.bin.index.json": {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}},
        "pytorch_model-00001-of-00001.bin": None,
        "config.json": {},
    }
    assert set(choose(files, "checkpoint", tmp_path).files) == set(files)
    more = {**files, "model.safetensors": None}
    assert set(choose(more, "checkpoint", tmp_path).files) == {"config.json", "model.safetensors"}


def test_sentence_transformers_settings(tmp_path: Path) -> None:
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Normalize"}]
    files = {
        "config.json": {},
        "model.safetensors": None,
        "modules.json": modules,
        "config_sentence_transformers.json": None,
        "1_Pooling/config.json": None,
        "3_Dense/config.json": None,
    }
    assert set(choose(files, "checkpoint", tmp_path).files) == set(files) - {"3_Dense/config.json"}


@pytest.mark.parametrize("modules", [5, None, "1_Pooling", {"path": "1_Pooling"}, [5, {"path": 7}], [[]]])
def test_settings_that_are_not_settings(modules: Any, tmp_path: Path) -> None:
    """``convert`` reports what is wrong with them."""
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    files = ("config.json", "model.safetensors", "modules.json", "1_Pooling/config.json")
    assert set(choose(files, "checkpoint", tmp_path).files) == set(files[:3])


def test_the_only_gguf_file_or_the_named_one(tmp_path: Path) -> None:
    assert choose(CROWDED, "gguf", tmp_path) == Selection(("tiny.gguf",), "tiny.gguf")
    two = ("config.json", "a-i2_s.gguf", "sub/b-f16.gguf")
    named = HubName("acme/tiny", None, "sub/b-f16.gguf")
    assert choose(two, "model", tmp_path, named) == Selection(("sub/b-f16.gguf",), "sub/b-f16.gguf")
    listed = r"give one of them: acme/tiny:a-i2_s.gguf \(1.5 MB\), acme/tiny:sub/b-f16.gguf \(1.5 MB\)$"
    with pytest.raises(HubError, match=f"acme/tiny has 2 GGUF files; {listed}"):
        choose(two, "gguf", tmp_path)
    with pytest.raises(HubError, match=f"acme/tiny has no file 'b-f16.gguf'; {listed}"):
        choose(two, "gguf", tmp_path, HubName("acme/tiny", None, "b-f16.gguf"))


def test_all_parts_of_a_split_file(tmp_path: Path) -> None:
    parts = tuple(f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3))
    assert choose(parts, "gguf", tmp_path) == Selection(parts, parts[0])
    second = HubName("acme/tiny", None, parts[1])
    assert choose((*parts, "small.gguf"), "gguf", tmp_path, second) == Selection(parts, parts[0])
    with pytest.raises(HubError, match=r"big-00001-of-00003.gguf \(4.5 MB\), acme/tiny:small.gguf"):
        choose((*parts, "small.gguf"), "gguf", tmp_path)
    with pytest.raises(HubError, match=r"has 2 of the 3 parts of big-00001-of-00003.gguf"):
        choose(parts[:2], "gguf", tmp_path)


def test_an_adapter(tmp_path: Path) -> None:
    files = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "tokenizer.json")
    assert choose(files, "adapter", tmp_path).files == ("adapter_config.json", "adapter_model.safetensors")
    with pytest.raises(HubError, match="is not a LoRA adapter; expected a repository with adapter_config"):
        choose(CROWDED, "adapter", tmp_path)
    both = (*files, "config.json", "model.safetensors")
    assert set(choose(both, "checkpoint", tmp_path).files) == set(both)


@pytest.mark.parametrize(
    ("names", "want", "text"),
    [
        (
            ("config.json", "model.safetensors"),
            "gguf",
            "without a GGUF file; convert it first: bitexport convert acme/tiny tiny.gguf",
        ),
        (("x.gguf",), "checkpoint", "has GGUF files and no checkpoint; expected config.json and model.safet"),
        (
            {"adapter_config.json": {"base_model_name_or_path": "big/base"}, "adapter_model.bin": None},
            "model",
            "run: bitexport convert big/base OUT.gguf --adapter acme/tiny",
        ),
        (("README.md",), "model", "does not have a checkpoint .* or a GGUF file; it has README.md"),
        ((), "gguf", "does not have a GGUF file; it has nothing"),
    ],
)
def test_nothing_of_use(names: Any, want: Want, text: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=text):
        choose(names, want, tmp_path)


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="names a file; expected a checkpoint: give acme/tiny alone"):
        choose(CROWDED, "checkpoint", tmp_path, HubName("acme/tiny", None, "tiny.gguf"))
