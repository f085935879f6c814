"""Takes memory or time, for tests of ``bitexport.system.limited``."""

from __future__ import annotations

import time

from bitexport.system.limited import answer


def main(memory: str, seconds: str, what: str) -> None:
    functions = {
        "memory": lambda: len(bytearray(1 << 30)),
        "time": lambda: time.sleep(60),
        "neither": lambda: print("no answer") or {"a": 1},
    }
    answer(memory, seconds, functions[what])
