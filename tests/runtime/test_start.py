"""``bitexport run`` starts fast: it imports little, and remembers what it found out about a file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.errors import BitexportWarning, UsageError
from bitexport.runtime import facts, proofs
from bitexport.runtime.completion import Completion, Sampling
from bitexport.tokenizer.missing_pre_tokenizer import PRE_KEY
from tests.support.gguf_files import rewritten
from tests.support.repository import REPOSITORY

Maker = Callable[..., Path]
GREEDY = Sampling(temperature=0)
PROMPT = "def add(left, right):\n"

#: Each takes a noticeable part of the time in which a model of 2B loads.
SLOW = {
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "gguf",
    "jinja2",
    "pydantic",
    "rich",
    "llama_cpp.llama",
}


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def model(gguf_of: Maker, tmp_path: Path) -> Path:
    return Path(shutil.copy(gguf_of("packed-multiply"), tmp_path / "model.gguf"))


def text_of(path: Path) -> str:
    return "".join(Completion(path, PROMPT, sampling=GREEDY, max_tokens=6, threads=1))


def imported_by(*arguments: str | Path) -> set[str]:
    """The slow packages that a command imports."""
    code = (
        "import sys\n"
        "from bitexport.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end\n"
        f"print(*sorted({SLOW!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


def test_run_imports_nothing_slow_for_a_file_that_it_knows(model: Path) -> None:
    command = ("run", model, "--prompt", "x", "-n", "1", "--quiet", "--ctx", "64")
    first = imported_by(*command)
    assert "numpy" in first  # which shows that this test sees imports
    assert not first & {"torch", "transformers", "llama_cpp.llama"}
    assert imported_by(*command) == set()


def test_what_is_remembered_is_what_was_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts.facts_of(model)
    assert found.context_length == 256
    monkeypatch.setattr(facts, "_found", None)  # from here on it must be remembered
    assert facts.facts_of(model) == found


def test_both_ways_give_the_same_text(model: Path) -> None:
    assert text_of(model) == text_of(model)


def test_a_changed_file_is_looked_at_again(model: Path, gguf_of: Maker) -> None:
    facts.facts_of(model)
    embedding = rewritten(gguf_of("packed-multiply"), model, metadata={"bitnet-b1.58.pooling_type": 1})
    with pytest.raises(UsageError, match="is an embedding model"):
        facts.facts_of(embedding)


def test_a_warning_is_given_every_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assumed = {PRE_KEY: "gpt-2"}, ["'gpt-2' is assumed"]
    monkeypatch.setattr("bitexport.runtime.loading.assumptions", lambda _: assumed)
    with pytest.warns(BitexportWarning, match="'gpt-2' is assumed"):
        found = facts.facts_of(model)
    monkeypatch.setattr(facts, "_found", None)
    with pytest.warns(BitexportWarning, match="'gpt-2' is assumed"):
        assert facts.facts_of(model) == found
    assert found.overrides == {PRE_KEY: "gpt-2"}


@pytest.mark.parametrize(
    "note",
    [
        "",
        "no JSON",
        "[]",
        '{"version": "0.1.0", "context_length": "256", "block_size": 0, "overrides": {}, "warnings": []}',
        '{"version": "0.1.0", "context_length": 512, "overrides": {}, "warnings": []}',
        '{"version": "0.0.1", "context_length": 512, "block_size": 0, "overrides": {}, "warnings": []}',
    ],
)
def test_a_note_that_is_not_ours_is_ignored(model: Path, cache: Path, note: str) -> None:
    found = facts.facts_of(model)
    (cache / proofs.identity([model])).write_text(note)
    assert facts.facts_of(model) == found
    assert json.loads((cache / proofs.identity([model])).read_text())["context_length"] == 256


def test_an_unproven_file_leaves_no_note(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITEXPORT_TRIAL", "0")
    facts.facts_of(model)
    assert not cache.exists() or not any(cache.iterdir())


def test_llama_cpp_is_completed_when_it_is_used(model: Path) -> None:
    code = (
        "import sys\n"
        "from bitexport.runtime.library import api, bind\n"
        "functions = api()\n"
        "assert 'llama_cpp.llama' not in sys.modules\n"
        "from llama_cpp import Llama, llama_cpp\n"
        "assert llama_cpp is functions and bind().Llama is Llama\n"
        "import bitexport\n"
        f"assert isinstance(bitexport.load({str(model)!r}, n_ctx=32), Llama)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
