"""Mutated GGUF files through ``inspect``, ``convert``, ``load`` and ``run``: refused by name, or they work.

Most cases leave out the trial in a child process, which takes as long as everything else. A file that lives
through all uses without it does so with it, too. Where the process dies, the case is done again with the
trial, which must refuse the file.
"""

from __future__ import annotations

import functools
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import bitexport
from bitexport.convert import convert
from bitexport.errors import BitexportError
from bitexport.gguf.checks.libllama import known
from bitexport.inspect import inspect
from bitexport.runtime.completion import Completion, Sampling
from bitexport.runtime.session import Session
from bitexport.runtime.trial import VARIABLE
from tests.support.tiny_models import Shape, tiny_checkpoint
from tests.torture.gguf_mutator import Content, mutant, parse
from tests.torture.workers import GIB, TortureError

SHARE = 40
SECONDS = 10
MEMORY = GIB

_TRIED_ONE_IN = 50
_HEALTH_ONE_IN = 4
_SESSION_ONE_IN = 3
_CONVERT_ONE_IN = 5

#: Architecture, type, type of the embeddings, tokenizer.
_SEEDS = (
    ("bitnet", "i2_s", "f16", "gpt2"),
    ("llama", "i2_s", "q6_k", "llama3"),
    ("llama", "tq2_0", "f16", "llama2"),
    ("qwen3", "tq1_0", "q8_0", "qwen2"),
    ("gemma3", "i2_s", "f16", "gpt2"),
    ("bitnet", "q2_0", "q4_k", "smollm"),
)

#: Of errors that are about memory.
_MEMORY_WORDS = re.compile(r"bad_alloc|allocat", re.IGNORECASE)


def prepare(folder: Path) -> None:
    for number, (architecture, kind, embed, tokenizer) in enumerate(_SEEDS):
        shape = Shape(
            hidden=256,
            ffn=256,
            layers=1,
            heads=2,
            kv_heads=1,
            vocab=480 if tokenizer == "llama2" else 400,
            context=64,
        )
        source = tiny_checkpoint(
            folder / f"{number}",
            "packed-multiply",
            shape=shape,
            architecture=architecture,
            tokenizer=tokenizer,
        )
        convert(source, folder / f"{number}.gguf", type=kind, embed_type=embed)


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:
    return _use(chance, prepared, folder, tried=False)


def again(chance: random.Random, prepared: Path, folder: Path) -> str:
    return _use(chance, prepared, folder, tried=True)


def _use(chance: random.Random, prepared: Path, folder: Path, *, tried: bool) -> str:
    file = folder / "mutant.gguf"
    seed = prepared / f"{chance.randrange(len(_SEEDS))}.gguf"
    file.write_bytes(mutant(_content(seed), _architectures(), chance))
    tried = chance.randrange(_TRIED_ONE_IN) == 0 or tried
    os.environ[VARIABLE] = "1" if tried else "0"
    health = chance.randrange(_HEALTH_ONE_IN) == 0
    inspected = _outcome(lambda: inspect(file, health=health))
    if chance.randrange(_CONVERT_ONE_IN) == 0:
        kind = chance.choice(("i2_s", "q2_0", "tq2_0"))
        _outcome(lambda: convert(file, folder / "out.gguf", type=kind))
    uses = {_outcome(lambda: _load(file)), _outcome(lambda: _run(file, chance))}
    if chance.randrange(_SESSION_ONE_IN) == 0:
        exact = chance.random() < 0.5
        uses.add(_outcome(lambda: _session(file, exact)))
    if uses == {"worked"}:
        return "worked" + ("" if inspected == "worked" else ", inspect refused")
    return f"refused by {_who(uses)}" + (", after a trial" if tried else "")


def _load(file: Path) -> None:
    model = bitexport.load(file, n_ctx=32, n_threads=1)
    try:
        model("Hi 水\x02", max_tokens=2)
    finally:
        model.close()


def _run(file: Path, chance: random.Random) -> None:
    sampling = Sampling(temperature=1.0, seed=chance.randrange(2**31))
    made = Completion(file, "a", sampling=sampling, max_tokens=2, n_ctx=32, threads=1)
    list(made)
    if made.tokens > 2:
        raise TortureError(f"{made.tokens} tokens instead of 2")


def _session(file: Path, exact: bool) -> None:
    with Session(file, n_ctx=16, n_threads=2, exact=exact) as session:
        session.logits((session.tokenize("Hello \x01水 123\n") or [0])[:8])


def _outcome(use: Callable[[], object]) -> str:
    """``"worked"``, or the kind of the error; checks that its message is one line and not about memory."""
    try:
        use()
    except BitexportError as error:
        message = str(error)
        if _MEMORY_WORDS.search(message) and "trial" not in message:
            raise TortureError(f"asks for too much memory: {message}") from error
        if "\n" in message or not message:
            raise TortureError(f"not one line: {message!r}") from error
        return _KINDS[next((number for number, words in enumerate(_WORDS) if words.search(message)), -1)]
    return "worked"


_WORDS = (re.compile("a trial in a separate process"), re.compile("cannot be loaded: "))
_KINDS = ("the trial", "libllama", "our checks")


def _who(uses: set[str]) -> str:
    return " and ".join(sorted(uses - {"worked"})) + (" in one use" if "worked" in uses else "")


@functools.cache
def _content(seed: Path) -> Content:
    return parse(seed)


@functools.cache
def _architectures() -> tuple[str, ...]:
    return tuple(sorted(known().architectures))
