"""Tokenizer metadata: what is read, what llama.cpp makes of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

from bitexport.convert import convert
from bitexport.errors import TokenizerError
from bitexport.gguf.pre_tokenizer import LLAMA3_SPLIT, QWEN2_SPLIT, SPLITS, Split, name_of
from bitexport.gguf.tokenizer import UNMERGED_SCORE, read_vocabulary
from tests.models import TEXT, tiny_checkpoint, tiny_tokenizer, write_tokenizer


def edit(folder: Path, change: Callable[[dict[str, Any]], object], file: str = "tokenizer.json") -> Path:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def test_everything_that_llama_cpp_wants(folder: Path) -> None:
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


def test_no_bos_is_said_too(folder: Path) -> None:
    """llama-bpe's default in llama.cpp is to add one."""
    found = read_vocabulary(edit(folder, lambda t: t.update(post_processor=None)), 512)
    assert found.metadata()["tokenizer.ggml.add_bos_token"] is False


def test_tokenizer_config_beats_the_template_and_says_so(folder: Path) -> None:
    edit(folder, lambda c: c.update(add_bos_token=False), "tokenizer_config.json")
    found = read_vocabulary(folder, 512)
    assert found.add_bos is False
    assert any("add_bos False" in warning for warning in found.warnings)


def test_named_chat_templates(folder: Path) -> None:
    templates = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    edit(folder, lambda c: c.update(chat_template=templates), "tokenizer_config.json")
    metadata = read_vocabulary(folder, 512).metadata()
    assert metadata["tokenizer.chat_template"] == "A"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert metadata["tokenizer.chat_template.tool_use"] == "B"


def test_a_chat_template_that_is_no_text(folder: Path) -> None:
    edit(folder, lambda c: c.update(chat_template="\ud83d"), "tokenizer_config.json")
    with pytest.raises(TokenizerError, match="half a character"):
        read_vocabulary(folder, 512)


def test_a_chat_template_file(folder: Path) -> None:
    edit(folder, lambda c: c.pop("chat_template"), "tokenizer_config.json")
    (folder / "chat_template.jinja").write_text("from a file")
    assert read_vocabulary(folder, 512).metadata()["tokenizer.chat_template"] == "from a file"


def test_a_filler_never_takes_a_tokens_name(folder: Path) -> None:
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
    with pytest.raises(TokenizerError, match=f"ids up to {size - 1}, the model {size - 1} embeddings"):
        read_vocabulary(folder, size - 1)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json; save it"):
        read_vocabulary(tmp_path, 512)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(TokenizerError, match=r"tokenizer\.model alone is not read"):
        read_vocabulary(tmp_path, 512)
    for content in ("{", "[]", "{}", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            read_vocabulary(tmp_path, 512)
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(TokenizerError, match="cannot be read"):
        read_vocabulary(tmp_path, 512)


def test_a_template_with_other_tokens(folder: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        text = json.dumps(tokenizer["post_processor"]).replace("<|begin_of_text|>", "<|pad|>")
        tokenizer["post_processor"] = json.loads(text.replace('"ids": [0]', '"ids": [2]'))

    with pytest.raises(TokenizerError, match="not its bos and eos"):
        read_vocabulary(edit(folder, change), 512)


# -- the pre-tokenizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([("gpt2",)], False, "gpt-2"),
        ([("digits",), ("gpt2",)], False, "smollm"),
        ([("split", LLAMA3_SPLIT), ("bytes",)], True, "llama-bpe"),
        ([("split", LLAMA3_SPLIT), ("bytes",)], False, "smaug-bpe"),
        ([("split", QWEN2_SPLIT), ("bytes",)], False, "qwen2"),
    ],
)
def test_names_by_structure(steps: list[tuple[str, ...]], ignore_merges: bool, name: str) -> None:
    parts = {
        "gpt2": lambda: {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "bytes": lambda: {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        "digits": lambda: {"type": "Digits", "individual_digits": True},
        "split": lambda regex: {
            "type": "Split",
            "pattern": {"Regex": regex},
            "behavior": "Isolated",
            "invert": False,
        },
    }
    described = [parts[step[0]](*step[1:]) for step in steps]
    description = {
        "model": {"ignore_merges": ignore_merges},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": described}
        if len(described) > 1
        else described[0],
    }
    assert name_of(tiny_tokenizer(), description, None) == name


def test_what_the_user_says_wins() -> None:
    assert name_of(tiny_tokenizer(), {}, "viking") == "viking"


def test_every_name_is_one_that_llama_cpp_knows() -> None:
    assert len(set(SPLITS.values())) == len(SPLITS)
    assert all(isinstance(split, Split) for split in SPLITS)


def test_the_table_of_llama_cpp_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same tokenizer under a name of its own, as a known model's would be."""
    from hashlib import sha256

    import bitexport.runtime.library as library

    ids = tiny_tokenizer().encode("check 1234").ids
    table = {"check_text": "check 1234", "hashes": {sha256(str(ids).encode()).hexdigest(): "falcon3"}}
    (tmp_path / "pre_tokenizers.json").write_text(json.dumps(table))
    monkeypatch.setattr(library, "find_library_dir", lambda: tmp_path)
    assert name_of(tiny_tokenizer(), {}, None) == "falcon3"


# -- the check against llama.cpp -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("gpt2", "gpt-2"),
        ("smollm", "smollm"),
        ("qwen2", "qwen2"),
        ("llama3", "llama-bpe"),
        ("smaug", "smaug-bpe"),
    ],
)
def test_llama_cpp_tokenizes_alike(tmp_path: Path, kind: str, name: str) -> None:
    folder = tiny_checkpoint(tmp_path / "c", tokenizer=kind)
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert report.warnings == []
    assert report.pre_tokenizer == name


def test_sentencepiece_like_bpe(tmp_path: Path) -> None:
    """Llama 2's kind: spaces become a mark, unknown characters become bytes."""
    folder = tiny_checkpoint(tmp_path / "c", tokenizer=None)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=special + bytes_, show_progress=False, max_token_length=6
    )
    ascii_only = ["".join(c for c in line if c.isascii()) for line in TEXT]
    pieces = [part for line in ascii_only for part in line.replace(" ", " ▁").split()]
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))

    # the trainer marks every token it was given as special; bytes are none
    def tidy(content: dict[str, Any]) -> None:
        content["added_tokens"] = content["added_tokens"][:3]

    edit(folder, tidy)
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
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


def test_a_name_that_llama_cpp_lacks(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    with pytest.raises(
        TokenizerError,
        match=r"refuses the vocabulary.*unknown pre-tokenizer type: 'nonsense'.*--pre-tokenizer",
    ) as caught:
        convert(checkpoint_of(), tmp_path / "x.gguf", embed_type="f16", pre_tokenizer="nonsense")
    assert "\n" not in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_pre_tokenizer_names_the_string(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    with pytest.raises(TokenizerError, match=r"llama.cpp tokenizes '.*' differently.*pre-tokenizer 'qwen2'"):
        convert(checkpoint_of(), tmp_path / "x.gguf", embed_type="f16", pre_tokenizer="qwen2")
    assert list(tmp_path.iterdir()) == []
