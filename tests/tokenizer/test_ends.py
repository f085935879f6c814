"""Several ends of generation: all of them are in the file, and llama.cpp stops at each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitexport.convert import convert
from bitexport.errors import TokenizerError
from bitexport.runtime.completion import Completion, Sampling
from bitexport.runtime.loading import load
from bitexport.tokenizer.vocabulary import read_vocabulary
from tests.support.tiny_models import write_tokenizer

A, B, C, TOOL = 10, 11, 12, 399  # ordinary tokens


def vocabulary(folder: Path, generation: Any, config: Any = None, **texts: int) -> Any:
    """The vocabulary of a folder with these ``eos_token_id``; ``texts`` renames tokens of ``folder``."""
    write_tokenizer(folder)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"eos_token_id": config}))
    if texts:
        content = json.loads((folder / "tokenizer.json").read_text())
        for text, number in texts.items():
            content["added_tokens"].append(
                {**content["added_tokens"][1], "id": number, "content": f"<|{text}|>"}
            )
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return read_vocabulary(folder, 512)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, {"eos": 1}),
        (1, 1, {"eos": 1}),
        ([1], None, {"eos": 1}),
        ([1, A], None, {"eos": 1, "eot": A}),
        (A, 1, {"eos": 1, "eot": A}),
        (None, [1, A], {"eos": 1, "eot": A}),
        ([1, A, B], 1, {"eos": 1, "eot": A, "eom": B}),
        ([A, B], None, {"eos": 1, "eot": A, "eom": B}),
        ([True, "x", None], None, {"eos": 1}),
    ],
)
def test_the_roles(tmp_path: Path, generation: Any, config: Any, expected: dict[str, int]) -> None:
    found = vocabulary(tmp_path, generation, config)
    assert {role: found.special[role] for role in ("eos", "eot", "eom") if role in found.special} == expected
    assert set(found.ends) == set(expected.values())
    keys = {f"tokenizer.ggml.{role}_token_id": number for role, number in expected.items()}
    assert keys.items() <= found.metadata().items()
    assert found.warnings == ()


def test_texts_that_llama_cpp_knows_give_way(tmp_path: Path) -> None:
    found = vocabulary(tmp_path, [1, 400, 401, A], eot_id=400, eom_id=401)
    assert (found.special["eot"], found.special["eom"]) == (400, A)
    assert set(found.ends) == {1, 400, 401, A}
    assert found.warnings == ()
    found = vocabulary(tmp_path, [1, 401, 400], eot_id=400, eom_id=401)
    assert (found.special["eot"], found.special["eom"]) == (400, 401)


def test_more_ends_than_a_file_has_keys_for(tmp_path: Path) -> None:
    found = vocabulary(tmp_path, [1, A, B, C])
    assert set(found.ends) == {1, A, B}
    (warning,) = found.warnings
    assert warning.startswith("eos_token_id lists 4 ends of generation, and a GGUF file has keys for three: ")
    assert f"does not stop at {C} ({found.tokens[C]!r})" in warning


def test_an_id_outside_the_vocabulary(tmp_path: Path) -> None:
    found = vocabulary(tmp_path, [1, 512, -1])
    assert found.ends == (1,)
    assert [text.split(";")[0] for text in found.warnings] == [
        f"generation_config.json: eos_token_id {number} is not a token" for number in (512, -1)
    ]


def test_a_damaged_generation_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(TokenizerError, match=r"generation_config\.json: not valid JSON"):
        read_vocabulary(tmp_path, 512)


def finish_reason(path: Path) -> str | None:
    run = Completion(path, "def add", sampling=Sampling(temperature=0), max_tokens=8)
    assert "".join(run) is not None
    return run.finish_reason


def test_run_stops_at_each_of_them(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    folder = tmp_path / "c"
    shutil.copytree(checkpoint_of(), folder)
    convert(folder, tmp_path / "x.gguf", embed_type="f16")
    model = load(tmp_path / "x.gguf", n_ctx=64)
    prompt = model.tokenize(b"def add", special=True)
    token = next(iter(model.generate(prompt, temp=0.0)))
    model.close()
    assert finish_reason(tmp_path / "x.gguf") == "length"
    for ends in ([1, token], [1, A, token]):  # in the place of eot, of eom
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        convert(folder, tmp_path / "x.gguf", embed_type="f16", force=True)
        assert finish_reason(tmp_path / "x.gguf") == "stop"
