"""Opens and runs each of the given GGUF files in this process: prints one JSON document a line.

BITEXPORT_TRIAL=0 python -m tests.support.programs.open_all FILE...
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable

import bitexport
from bitexport.errors import BitexportError
from bitexport.runtime.session import Session


def with_session(path: str) -> None:
    with Session(path, n_ctx=16, n_threads=1) as session:
        session.logits(session.tokenize("Hello, world")[:8] or [0])


def with_load(path: str) -> None:
    model = bitexport.load(path, n_ctx=32, n_threads=1)
    try:
        model("a", max_tokens=2)
    finally:
        model.close()


def outcome(use: Callable[[str], None], path: str) -> str:
    try:
        use(path)
    except BitexportError as error:
        return f"error: {error}"
    return "works"


def main() -> None:
    warnings.simplefilter("ignore")
    for path in sys.argv[1:]:
        uses = {"Session": with_session, "load": with_load}
        print(json.dumps({name: outcome(use, path) for name, use in uses.items()}), flush=True)


if __name__ == "__main__":
    main()
