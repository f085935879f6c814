"""Forks while threads load and generate: a child says what it cannot do, and can load for itself."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
from pathlib import Path

import bitexport
from bitexport.errors import UsageError
from tests.torture.kinds import threads
from tests.torture.workers import GIB, TortureError

SHARE = 3
SECONDS = 60
MEMORY = 4 * GIB
_CHILD_SECONDS = 20

prepare = threads.prepare


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:  # noqa: ARG001
    model = prepared / "model.gguf"
    llama = bitexport.load(model, n_ctx=64, n_threads=2)
    llama("def", max_tokens=1)
    stop = threading.Event()
    busy = [threading.Thread(target=_load_until, args=(model, stop)) for _ in range(chance.choice((0, 1, 3)))]
    for each in busy:
        each.start()
    outcomes = []
    try:
        for _ in range(5):
            time.sleep(chance.random() * 0.02)
            outcomes.append(_fork(llama, model))
    finally:
        stop.set()
        for each in busy:
            each.join()
        llama.close()
    ended = "refused in a child" if "refused" in outcomes else "worked in every child"
    return f"{ended}, beside {len(busy)} threads that load"


def _load_until(model: Path, stop: threading.Event) -> None:
    while not stop.is_set():
        llama = bitexport.load(model, n_ctx=64, n_threads=1)
        llama("def", max_tokens=1)
        llama.close()


def _fork(llama: bitexport.Llama, model: Path) -> str:
    pid = os.fork()
    if pid == 0:
        signal.alarm(_CHILD_SECONDS)
        os._exit(_in_child(llama, model))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, 5):
        raise TortureError(
            "the child hung" if code == -signal.SIGALRM else f"the child ended with code {code}"
        )
    return "refused" if code == 5 else "loaded"


def _in_child(llama: bitexport.Llama, model: Path) -> int:
    try:
        try:
            llama("def add", max_tokens=2)
            return 3
        except UsageError:
            pass
        try:
            own = bitexport.load(model, n_ctx=64, n_threads=2)
        except UsageError:  # another thread was loading when this process was forked
            return 5
        own("def", max_tokens=2)
        own.close()
        return 0
    except BaseException:
        traceback.print_exc()
        return 4
