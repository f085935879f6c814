"""Damaged GGUF files through libllama itself, built with sanitizers.

The driver (native/llama_cpp/fuzz) keeps one file for every assertion in llama.cpp that fails, and every file
that triggers a sanitizer or a hang. ``bitexport`` must refuse each of these files before its own libllama
would open it. One case is a run of the driver.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from bitexport.convert import convert
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import Shape, tiny_checkpoint
from tests.torture.workers import TortureError

SHARE = 10
SECONDS = 300
#: AddressSanitizer reserves terabytes; the driver limits each allocation to 1 GiB.
MEMORY = 1 << 46

_EXECUTIONS = 200
_DRIVER = REPOSITORY / "build/fuzz/fuzz_gguf"
_GATE = """
import sys
from bitexport.errors import BitexportError
from bitexport.runtime.session import Session
try:
    with Session(sys.argv[1], n_ctx=16, n_threads=1) as session:
        session.advance([0])
except BitexportError as error:
    print(error)
    sys.exit(1)
"""


def missing() -> str:
    return (
        "" if _DRIVER.is_file() else f"{_DRIVER.relative_to(REPOSITORY)} is not built; make torture does that"
    )


def prepare(folder: Path) -> None:
    shape = Shape(hidden=128, ffn=256, layers=1, heads=2, kv_heads=1, vocab=400, context=64)
    for architecture in ("bitnet", "llama"):
        checkpoint = tiny_checkpoint(
            folder / architecture, "packed-multiply", shape=shape, architecture=architecture
        )
        convert(checkpoint, folder / f"{architecture}.gguf", embed_type="f16")


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:
    found = folder / "found"
    found.mkdir()
    seed = chance.randrange(2**31)
    command = [_DRIVER, "--executions", str(_EXECUTIONS), "--seed", str(seed), "--findings", found]
    done = subprocess.run(
        [*command, *sorted(prepared.glob("*.gguf"))], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in (0, 3):
        raise TortureError(f"the driver ended with status {done.returncode}")
    through = sorted(file.name for file in found.glob("*.gguf") if not _refused(file))
    if through:
        raise TortureError(f"not refused: {', '.join(through)}: {json.loads(done.stdout)}")
    return f"worked: {_EXECUTIONS} files, {'some' if any(found.iterdir()) else 'none'} that ended libllama"


def _refused(file: Path) -> bool:
    """Whether ``bitexport`` refuses a file, in a process of its own."""
    command = [sys.executable, "-c", _GATE, str(file)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 1 and bool(ended.stdout)
