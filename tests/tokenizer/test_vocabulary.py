"""Tokenizer metadata: what is read from tokenizer.json, and the tokenizers that are rejected."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from bitexport.convert import convert
from bitexport.errors import TokenizerError
from bitexport.tokenizer.sentencepiece_rule import UNMERGED_SCORE
from bitexport.tokenizer.vocabulary import read_vocabulary
from tests.support.tiny_models import tiny_checkpoint, tiny_tokenizer, write_tokenizer
from tests.support.tokenizer_files import BOS, EOS, NO_POST_PROCESSOR, PAD, Edit, edit, settings, template


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def test_the_complete_metadata(folder: Path) -> None:
    found = read_vocabulary(folder, 512)
    tokenizer = tiny_tokenizer()
    size = tokenizer.get_vocab_size()
    assert (found.model, found.pre) == ("gpt2", "gpt-2")
    assert found.tokens[:size] == [tokenizer.id_to_token(i) for i in range(size)]
    assert found.types[:3] == [gguf.TokenType.CONTROL] * 3
    assert found.types[tokenizer.token_to_id("<tool>")] == gguf.TokenType.USER_DEFINED
    assert found.types[tokenizer.token_to_id("e")] == gguf.TokenType.NORMAL
    assert found.tokens[size:] == [f"[PAD{i}]" for i in range(size, 512)]
    assert set(found.types[size:]) == {gguf.TokenType.UNUSED}
    assert found.padded == 512 - size
    assert (
        found.merges[0].split() == json.loads((folder / "tokenizer.json").read_text())["model"]["merges"][0]
    )
    assert found.special == {"bos": 0, "eos": 1, "pad": 2}
    assert (found.add_bos, found.add_eos) == (True, False)
    assert found.chat_template.startswith("{% for m in messages %}")
    assert found.warnings == ()
    metadata = found.metadata()
    assert metadata["tokenizer.ggml.padding_token_id"] == 2
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False


# edits, (add_bos, add_eos), (id of bos, id of eos), patterns of the warnings
ENDS: list[tuple[list[Edit], tuple[bool, bool], tuple[int, int], list[str]]] = [
    ([], (True, False), (0, 1), []),
    ([NO_POST_PROCESSOR], (False, False), (0, 1), []),
    ([settings(add_bos_token=False)], (True, False), (0, 1), ["add_bos_token False, but .* adds one"]),
    (
        [NO_POST_PROCESSOR, settings(add_bos_token=True)],
        (False, False),
        (0, 1),
        ["True, but .* does not add one"],
    ),
    ([settings(add_eos_token=True)], (True, False), (0, 1), ["add_eos_token True"]),
    ([template(BOS, "$A", EOS)], (True, True), (0, 1), []),
    ([template("$A", EOS), settings(add_bos_token=True)], (False, True), (0, 1), ["add_bos_token True"]),
    ([settings(bos_token=PAD)], (True, False), (0, 1), ["token 0 .* bos_token is 2: 0 is written"]),
    ([settings(bos_token=None)], (True, False), (0, 1), []),
    ([template(PAD, "$A")], (True, False), (2, 1), ["token 2 .* bos_token is 0"]),
]


@pytest.mark.parametrize(("edits", "added", "ids", "warnings"), ENDS)
def test_the_ends_of_a_text_are_those_of_transformers(
    folder: Path,
    edits: list[Edit],
    added: tuple[bool, bool],
    ids: tuple[int, int],
    warnings: list[str],
) -> None:
    for file, change in edits:
        edit(folder, change, file)
    found = read_vocabulary(folder, 512)
    assert (found.add_bos, found.add_eos) == added
    assert (found.special["bos"], found.special["eos"]) == ids
    reference = AutoTokenizer.from_pretrained(folder)
    bare = reference("ab", add_special_tokens=False).input_ids
    assert reference("ab").input_ids == [*ids[:1] * added[0], *bare, *ids[1:] * added[1]]
    assert len(found.warnings) == len(warnings)
    assert all(re.search(*pair) for pair in zip(warnings, found.warnings, strict=True))
    # written even if false, because llama.cpp adds bos by default for llama-bpe
    assert found.metadata()["tokenizer.ggml.add_bos_token"] is added[0]


def test_padding_and_truncation_of_a_training_run_do_not_matter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def name(tokenizer: Tokenizer, *_: object) -> str:
        seen.append(tokenizer.encode("abc abc abc").ids)
        return "gpt-2"

    monkeypatch.setattr("bitexport.tokenizer.pre_tokenizer.name_of", name)
    before = read_vocabulary(folder, 512)
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved.enable_padding(length=64, pad_id=2)
    saved.enable_truncation(max_length=2)
    saved.save(str(folder / "tokenizer.json"))
    assert read_vocabulary(folder, 512) == before
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "contains a list, expected a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"add_bos_token": "no"}', "add_bos_token is 'no'; expected true, false"),
        ('{"add_eos_token": 1}', "add_eos_token is 1;"),
    ],
)
def test_an_invalid_tokenizer_config(folder: Path, content: str, message: str) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(TokenizerError, match=rf"tokenizer_config\.json: .*{message}"):
        read_vocabulary(folder, 512)


def test_named_chat_templates(folder: Path) -> None:
    templates = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    edit(folder, lambda c: c.update(chat_template=templates), "tokenizer_config.json")
    metadata = read_vocabulary(folder, 512).metadata()
    assert metadata["tokenizer.chat_template"] == "A"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert metadata["tokenizer.chat_template.tool_use"] == "B"


def test_a_chat_template_with_a_lone_surrogate(folder: Path) -> None:
    edit(folder, lambda c: c.update(chat_template="\ud83d"), "tokenizer_config.json")
    with pytest.raises(TokenizerError, match="contains a lone surrogate"):
        read_vocabulary(folder, 512)


def test_a_chat_template_file(folder: Path) -> None:
    edit(folder, lambda c: c.pop("chat_template"), "tokenizer_config.json")
    (folder / "chat_template.jinja").write_text("from a file")
    assert read_vocabulary(folder, 512).metadata()["tokenizer.chat_template"] == "from a file"


def test_padding_never_reuses_the_name_of_a_token(folder: Path) -> None:
    size = tiny_tokenizer().get_vocab_size()
    last = {"id": size, "content": "[PAD511]"}
    edit(folder, lambda t: t["added_tokens"].append({**t["added_tokens"][-1], **last}))
    tokens = read_vocabulary(folder, 512).tokens
    assert tokens[size] == "[PAD511]"
    assert len(set(tokens)) == 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(type="Unigram"), "not a tokenizer"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizes text .Lowercase."),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer .* unknown"),
        (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "--pre-tokenizer"),
    ],
)
def test_tokenizers_that_llama_cpp_lacks(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_vocabulary(edit(folder, change), 512)


def test_other_kinds_of_model(tmp_path: Path) -> None:
    Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(TokenizerError, match="type 'WordPiece'; expected BPE"):
        read_vocabulary(tmp_path, 512)


def test_sizes_that_do_not_fit(folder: Path) -> None:
    size = tiny_tokenizer().get_vocab_size()
    assert read_vocabulary(folder, size).padded == 0
    with pytest.raises(
        TokenizerError, match=f"ids up to {size - 1}, but the model has {size - 1} embeddings"
    ):
        read_vocabulary(folder, size - 1)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json or tokenizer\.model; save it"):
        read_vocabulary(tmp_path, 512)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: not a SentencePiece model"):
        read_vocabulary(tmp_path, 512)
    for content in ("{", "[]", "{}", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            read_vocabulary(tmp_path, 512)
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.json").write_text("[" * 100_000)
    with pytest.raises(TokenizerError, match="cannot be read"):
        read_vocabulary(tmp_path, 512)


def test_a_template_with_more_tokens_than_llama_cpp_adds(folder: Path) -> None:
    file, change = template(BOS, PAD, "$A")
    with pytest.raises(TokenizerError, match="more than one token around a text"):
        read_vocabulary(edit(folder, change, file), 512)


def test_sentencepiece_like_bpe(tmp_path: Path) -> None:
    """A tokenizer like Llama 2's."""
    folder = tiny_checkpoint(tmp_path / "c", tokenizer="llama2")
    found = read_vocabulary(folder, 512)
    assert (found.model, found.pre, found.add_bos, found.add_space_prefix) == ("llama", "default", True, True)
    assert found.types[:4] == [
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.CONTROL,
        gguf.TokenType.BYTE,
    ]
    assert found.scores[0] == UNMERGED_SCORE
    assert max(found.scores) == 0
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert report.warnings == []


def test_a_panic_of_the_library_is_an_error(checkpoint_of: Callable[..., Path], tmp_path: Path) -> None:
    """Found by the fuzzer: an exception that is not an ``Exception`` passed every handler."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of("packed-multiply"), folder)
    description = json.loads((folder / "tokenizer.json").read_text())
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<x>": {"id": "<x>", "ids": [0], "tokens": ["<x>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(TokenizerError, match="the tokenizers library panicked"):
        read_vocabulary(folder, 512)


def test_a_normalizer_that_is_not_an_object(checkpoint_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of("packed-multiply"), folder)
    description = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**description, "normalizer": [[]]}))
    with pytest.raises(TokenizerError, match="tokenizer"):
        read_vocabulary(folder, 512)
