"""Drafts in llama-server: the same text with and without them, and combinations that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from bitexport.convert import convert
from bitexport.errors import GGUFError, UsageError
from bitexport.serve import Server
from bitexport.serve.command import arguments
from bitexport.text.stdlib import source_files, standard_library, text_of
from tests.support.api_client import Client
from tests.support.repository import TINY_PYTHON

TOKENS = 96
# Greedy, and without what earlier requests left: a cached beginning is rounded differently.
ALONE = {"temperature": 0, "cache_prompt": False}
# It continues with what it has seen.
REPEATING = "".join(f"    def get_{name}(self):\n        return self._{name}\n\n" for name in "abcdab")


@pytest.fixture(scope="module")
def python_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("drafts") / "python.gguf"
    convert(TINY_PYTHON, file)
    return file


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    folder = standard_library()
    texts = [text_of(file)[:600] for file in source_files(folder)[:60:10]]
    return [REPEATING, "class A:\n" + REPEATING, *texts]


@pytest.fixture(scope="module")
def servers(python_model: Path) -> Iterator[dict[str, Client]]:
    """Without drafts, with drafts from the text, and from a draft model, which is the same one."""
    with ExitStack() as stack:
        found = {}
        for name, draft in (("plain", None), ("lookup", "lookup"), ("model", python_model)):
            started = Server(python_model, port=0, slots=2, ctx=512, threads=1, draft=draft)
            found[name] = Client(stack.enter_context(started).port)
        yield found


@pytest.mark.parametrize("draft", ["lookup", "model"])
def test_the_text_is_the_same(servers: dict[str, Client], prompts: list[str], draft: str) -> None:
    drafted = accepted = 0
    for prompt in prompts:
        plain, answer = (servers[name].complete(prompt, TOKENS, **ALONE) for name in ("plain", draft))
        assert answer["choices"][0] == plain["choices"][0]
        assert "draft_n" not in plain["timings"]
        drafted += answer["timings"].get("draft_n", 0)
        accepted += answer["timings"].get("draft_n_accepted", 0)
    assert drafted >= accepted > 30


@pytest.mark.parametrize("draft", ["lookup", "model"])
def test_requests_at_the_same_time_do_not_mix(
    servers: dict[str, Client], prompts: list[str], draft: str
) -> None:
    def text(name: str, prompt: str) -> str:
        return str(servers[name].complete(prompt, TOKENS, **ALONE)["choices"][0]["text"])

    expected = [text("plain", prompt) for prompt in prompts[:4]]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda prompt: text(draft, prompt), prompts[:4]))
    assert found == expected


def test_the_same_seed_gives_the_same_text(servers: dict[str, Client]) -> None:
    texts = [
        servers[name].complete(REPEATING, TOKENS, **{**ALONE, "temperature": 0.7, "seed": 4})["choices"][0][
            "text"
        ]
        for name in ("plain", "lookup")
    ]
    assert texts[0] == texts[1]


def test_what_does_not_fit_together(python_model: Path, model: Path, tmp_path: Path) -> None:
    def serve(path: Path = python_model, **options: object) -> Server:
        return Server(path, port=0, **options)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match="0 draft tokens per pass; expected 1 to 31"):
        serve(draft="lookup", draft_tokens=0)
    with pytest.raises(UsageError, match="leave out --draft or --workers"):
        serve(draft="lookup", workers="127.0.0.1:9")
    with pytest.raises(UsageError, match="20 slots with 31 draft tokens each are 640 tokens per pass"):
        serve(draft="lookup", draft_tokens=31, slots=20)
    with pytest.raises(UsageError, match=r"served for embeddings, which have no drafts; leave out --draft"):
        serve(draft="lookup", pooling="mean")
    with pytest.raises(UsageError, match="drafts need one vocabulary for both"):
        serve(draft=model)
    with pytest.raises(GGUFError, match=r"missing\.gguf"):
        serve(draft=tmp_path / "missing.gguf")


def test_few_draft_tokens_need_as_few_to_match(python_model: Path) -> None:
    """llama-server drafts at least as many tokens as have to match."""
    found = arguments(Server(python_model, port=0, draft="lookup", draft_tokens=2).plan)
    at = found.index("--spec-ngram-simple-size-n")
    assert found[at : at + 4] == ["--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "2"]
