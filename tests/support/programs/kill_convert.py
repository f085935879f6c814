"""Converts repeatedly and kills each conversion at a random moment. For test_killed.py.

    python kill_convert.py CHECKPOINT OUT.gguf ROUNDS SEED

Each conversion runs in a fork, to save the time of imports. Prints one JSON document: how many rounds found
no file, the old file, and the new one; any other result is an error.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from bitexport.convert import convert


def _fork_and_convert(checkpoint: Path, out: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            convert(checkpoint, out, force=True)
        finally:
            os._exit(0)
    return child


def main() -> None:
    checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
    rounds, seed = int(sys.argv[3]), int(sys.argv[4])
    start = time.perf_counter()
    os.waitpid(_fork_and_convert(checkpoint, out), 0)
    duration = time.perf_counter() - start
    complete = out.read_bytes()

    found = {"nothing": 0, "old": 0, "new": 0, "killed": 0}
    moments = random.Random(seed)
    for index in range(rounds):
        old = b"" if index % 2 else b"what was here before"
        out.unlink(missing_ok=True)
        if old:
            out.write_bytes(old)
        child = _fork_and_convert(checkpoint, out)
        time.sleep(moments.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found["killed"] += os.WIFSIGNALED(status)
        if not out.exists():
            assert not old, "the old file is gone"
            found["nothing"] += 1
            continue
        content = out.read_bytes()
        assert content == complete or (old and content == old), f"{len(content)} bytes of {len(complete)}"
        found["new" if content == complete else "old"] += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main()
