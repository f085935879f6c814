"""Eight threads load and generate at once: the text is right, and stdout and stderr stay where they were."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import bitexport
from bitexport.convert import convert
from tests.support.tiny_models import Shape, tiny_checkpoint
from tests.torture.workers import GIB, TortureError

SHARE = 5
SECONDS = 60
#: A thread's stack takes 8 MiB of address space, and its arena of malloc 64 MiB.
MEMORY = 4 * GIB
THREADS = 8
LOADS = 5  # of each thread


def prepare(folder: Path) -> None:
    shape = Shape(hidden=256, ffn=256, layers=1, heads=2, kv_heads=1)
    convert(tiny_checkpoint(folder / "source", shape=shape), folder / "model.gguf", embed_type="f16")


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:  # noqa: ARG001
    prompts = [chance.choice(("def", "class", "for", "é")) for _ in range(THREADS)]
    counts = [chance.choice((1, 2)) for _ in range(THREADS)]
    output = _standard_streams()
    texts: dict[str, set[str]] = {}
    problems: list[str] = []

    def work(prompt: str, threads: int) -> None:
        try:
            for _ in range(LOADS):
                llama = bitexport.load(prepared / "model.gguf", n_ctx=64, n_threads=threads)
                made = llama(prompt, max_tokens=6, temperature=0)["choices"][0]["text"]
                texts.setdefault(prompt, set()).add(made)
                llama.close()
                if _standard_streams() != output:
                    problems.append("stdout or stderr is another file")
        except BaseException as error:
            problems.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=each) for each in zip(prompts, counts, strict=True)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    if problems or _standard_streams() != output:
        raise TortureError("; ".join(problems) or "stdout or stderr is another file at the end")
    if wrong := {prompt: found for prompt, found in texts.items() if len(found) != 1}:
        raise TortureError(f"texts differ between threads: {wrong}"[:300])
    return f"worked: {THREADS * LOADS} loads from {THREADS} threads"


def _standard_streams() -> list[tuple[int, int]]:
    return [(os.fstat(number).st_dev, os.fstat(number).st_ino) for number in (1, 2)]
