"""tokenizer.model without tokenizer.json, and tokenizers that transformers 5 has saved again."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from transformers import AutoTokenizer

from bitexport.convert import convert
from bitexport.errors import TokenizerError
from bitexport.gguf.reader import read_gguf
from bitexport.parity.tokenizer import tokenizer_parity
from bitexport.runtime.loading import load
from bitexport.tokenizer.compare import encode
from bitexport.tokenizer.hard_strings import HARD_STRINGS
from bitexport.tokenizer.vocabulary import read_vocabulary
from tests.support.tiny_models import TEXT, tiny_checkpoint
from tests.support.tokenizer_files import edit

Maker = Callable[..., Path]


def train(**options: Any) -> bytes:
    """A tokenizer.model with the settings of Llama 2's, trained on a few lines."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXT for line in text.splitlines() if line]),
        model_writer=written,
        minloglevel=2,
        **{
            "model_type": "bpe",
            "vocab_size": 450,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "allow_whitespace_only_pieces": True,
            "character_coverage": 0.99,
            **options,
        },
    )
    return written.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return train(user_defined_symbols=["<tool>"])


@pytest.fixture
def folder(tmp_path: Path, model: bytes) -> Path:
    made = tiny_checkpoint(tmp_path / "c", architecture="llama", tokenizer=None)
    edit(made, lambda c: c.update(bos_token_id=1, eos_token_id=2, pad_token_id=None), "config.json")
    (made / "tokenizer.model").write_bytes(model)
    return made


def test_the_keys_are_those_of_llama_cpps_converter(folder: Path, model: bytes, tmp_path: Path) -> None:
    """And the ids of hard strings are those of sentencepiece; convert has checked it as well."""
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    (warning,) = report.warnings
    assert warning.startswith("tokenizer.model has 1 user-defined tokens, such as '<tool>'")
    assert (report.tokenizer, report.pre_tokenizer, report.padded_tokens) == ("llama", "default", 512 - 450)
    file = read_gguf(tmp_path / "x.gguf")
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(number) for number in range(450)]
    assert file.elements("tokenizer.ggml.tokens") == [*pieces, *(f"[PAD{n}]" for n in range(450, 512))]
    scores = [processor.get_score(number) for number in range(450)]
    assert file.elements("tokenizer.ggml.scores") == [*scores, *([-10000.0] * 62)]
    types = file.elements("tokenizer.ggml.token_type")
    kinds = gguf.TokenType
    assert types[:4] == [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, kinds.USER_DEFINED]
    for number in range(450):
        assert (types[number] == kinds.BYTE) == processor.is_byte(number)
    assert set(types[450:]) == {kinds.UNUSED}
    expected = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": True,
    }
    assert {
        f"tokenizer.ggml.{key}": value for key, value in expected.items()
    }.items() <= file.metadata.items()
    assert "tokenizer.ggml.padding_token_id" not in file.metadata
    loaded = load(tmp_path / "x.gguf", vocab_only=True)
    for text in (*HARD_STRINGS, " x", "a<tool>", "\n\n  1234", ""):
        assert encode(loaded, text, False) == processor.encode(text)
    space = processor.piece_to_id("▁")
    a, tool, b = processor.encode("a<tool>b")[:2], [3], processor.encode("a<tool>b")[3:]
    assert encode(loaded, "a<tool>b", False) == [*a, *tool, space, *b]
    loaded.close()


def test_parity_with_transformers(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.model").write_bytes(train())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "x.gguf", embed_type="f16")
    report = tokenizer_parity(folder, tmp_path / "x.gguf", ["one", " leading space"])
    assert report.passed, report.describe()


def test_added_tokens_and_settings(folder: Path, tmp_path: Path) -> None:
    settings = {
        "bos_token": {"content": "</s>"},
        "eos_token": "<|im_end|>",
        "add_bos_token": False,
        "add_eos_token": True,
        "chat_template": "{{ messages }}",
        "added_tokens_decoder": {
            "451": {"content": "<|im_end|>", "special": True},
            "1": {"content": "<s>", "special": True},
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": 450}))
    found = read_vocabulary(folder, 512)
    assert found.tokens[450:453] == ["<extra>", "<|im_end|>", "[PAD452]"]
    assert found.types[450:453] == [
        gguf.TokenType.USER_DEFINED,
        gguf.TokenType.CONTROL,
        gguf.TokenType.UNUSED,
    ]
    assert found.scores[450:453] == [-1000.0, -1000.0, -10000.0]
    assert (found.special["bos"], found.special["eos"]) == (2, 451)
    assert (found.add_bos, found.add_eos, found.padded) == (False, True, 60)
    assert found.chat_template == "{{ messages }}"
    convert(folder, tmp_path / "x.gguf", embed_type="f16")
    loaded = load(tmp_path / "x.gguf", vocab_only=True)
    assert 450 in encode(loaded, "a<extra>b", False)
    loaded.close()


def test_without_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model .*pip install 'bitexport\[sentencepiece\]'$"):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 380}, r"a model of kind unigram; expected BPE"),
        (
            {"normalization_rule_name": "nmt_nfkc"},
            r"llama\.cpp tokenizes .* differently .* tokenizer\.model gives",
        ),
        (
            {"remove_extra_whitespaces": True},
            r"llama\.cpp tokenizes .* differently .* tokenizer\.model gives",
        ),
    ],
)
def test_models_that_llama_cpp_encodes_otherwise(
    folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (folder / "tokenizer.model").write_bytes(train(**options))
    with pytest.raises(TokenizerError, match=message):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert not (tmp_path / "x.gguf").exists()


def test_without_a_space_in_front(folder: Path, tmp_path: Path) -> None:
    raw = train(add_dummy_prefix=False, user_defined_symbols=["<tool>"])
    (folder / "tokenizer.model").write_bytes(raw)
    assert convert(folder, tmp_path / "x.gguf", embed_type="f16").warnings == []
    loaded = load(tmp_path / "x.gguf", vocab_only=True)
    expected = sentencepiece.SentencePieceProcessor(model_proto=raw).encode("a<tool>b")
    assert encode(loaded, "a<tool>b", False) == expected
    loaded.close()
    assert read_gguf(tmp_path / "x.gguf").metadata["tokenizer.ggml.add_space_prefix"] is False


def test_settings_against_the_model_and_the_advice(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.model").write_bytes(train())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        TokenizerError, match=r"add_prefix_space false, .* save a tokenizer\.json with AutoTok"
    ):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    convert(folder, tmp_path / "x.gguf", embed_type="f16")
    assert read_gguf(tmp_path / "x.gguf").metadata["tokenizer.ggml.add_space_prefix"] is False
    assert tokenizer_parity(folder, tmp_path / "x.gguf", ["one", " two"]).passed


@pytest.mark.parametrize("cut", [0, 1, 100, 3000])
def test_a_damaged_model(folder: Path, model: bytes, cut: int) -> None:
    (folder / "tokenizer.model").write_bytes(model[:cut])
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.model: (not a SentencePiece model|a model of kind)"
    ):
        read_vocabulary(folder, 512)


def test_a_model_that_is_too_large(folder: Path) -> None:
    with pytest.raises(TokenizerError, match="ids up to 449, but the model has 449 embeddings"):
        read_vocabulary(folder, 449)


@pytest.fixture
def saved_again(tmp_path: Path, checkpoint_of: Maker) -> Path:
    """A LlamaTokenizer, loaded and saved by transformers 5, as `train` does with a student's."""
    folder = tmp_path / "saved"
    shutil.copytree(checkpoint_of(tokenizer="llama2"), folder)
    edit(folder, lambda c: c.update(tokenizer_class="LlamaTokenizer"), "tokenizer_config.json")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]["type"] == "Metaspace"
    return folder


def test_a_tokenizer_that_transformers_saved_again(saved_again: Path, tmp_path: Path, gguf_of: Maker) -> None:
    """It converts with the original's rule, and says what differs."""
    report = convert(saved_again, tmp_path / "x.gguf", embed_type="f16")
    (warning,) = report.warnings
    assert "saved again by transformers 5: transformers 5 leaves out the space" in warning
    files = [load(path, vocab_only=True) for path in (tmp_path / "x.gguf", gguf_of(tokenizer="llama2"))]
    for text in (*HARD_STRINGS, " a", "a <s> b", "<s>b"):
        again, original = (encode(file, text, True) for file in files)
        assert again == original
    for file in files:
        file.close()
    compared = tokenizer_parity(saved_again, tmp_path / "x.gguf", [" leading space", "none"])
    assert compared.passed, compared.describe()
    assert compared.mismatches[0].what == "prompt 1"
    assert "prompt 2" not in {mismatch.what for mismatch in compared.mismatches}


def test_neither_parity_nor_doctor_blames_it(saved_again: Path, tmp_path: Path) -> None:
    from bitexport.doctor import doctor
    from bitexport.parity import parity

    convert(saved_again, tmp_path / "x.gguf", embed_type="f16")
    assert parity(saved_again, tmp_path / "x.gguf", prompts=[" a leading space", "none"]).passed
    report = doctor(saved_again, tmp_path / "x.gguf")
    assert report.facts.tokenizer_difference is None


def test_a_metaspace_of_another_kind_is_still_refused(saved_again: Path, tmp_path: Path) -> None:
    edit(saved_again, lambda t: t["pre_tokenizer"].update(split=True))
    edit(saved_again, lambda t: t["model"]["merges"].append(["▁", "▁"]))
    with pytest.raises(TokenizerError, match=r"llama\.cpp tokenizes .* differently .* tokenizer\.json gives"):
        convert(saved_again, tmp_path / "x.gguf", embed_type="f16")


def test_a_class_whose_code_is_in_the_checkpoint(tmp_path: Path, checkpoint_of: Maker) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(checkpoint_of(), folder)
    code = f"raise SystemExit(open({str(tmp_path / 'executed')!r}, 'w'))\n"
    (folder / "tokenization_own.py").write_text(code)
    remote = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    edit(
        folder,
        lambda c: c.update(tokenizer_class="OwnTokenizer", auto_map=remote),
        "tokenizer_config.json",
    )
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    (warning,) = report.warnings
    assert warning.startswith(
        "tokenizer_config.json names OwnTokenizer, a class whose code is in the checkpoint"
    )
    compared = tokenizer_parity(folder, tmp_path / "x.gguf")
    assert compared.passed, compared.describe()
    assert not (tmp_path / "executed").exists()
