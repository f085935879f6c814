"""Fuzzes libllama with damaged GGUF files under sanitizers, and runs our own checks on files that crash it.

    python -m tests.fuzz.fuzz_gguf build/fuzz/fuzz_gguf --executions 200000 --findings DIR

The driver (native/llama_cpp/fuzz) keeps one file for every assertion in llama.cpp that fails, and every file
that triggers a sanitizer or a hang. ``bitexport`` must reject each of these files with a
:class:`BitexportError` before libllama opens it; otherwise it is a failure. Exit status: 0 without failures,
3 otherwise. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bitexport.convert import convert
from tests.support.tiny_models import Shape, tiny_checkpoint

GATE = """
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


def make_seeds(folder: Path) -> list[Path]:
    """Small I2_S files for both graphs that run them."""
    shape = Shape(hidden=128, ffn=256, layers=1, heads=2, kv_heads=1, vocab=400, context=64)
    seeds = []
    for architecture in ("bitnet", "llama"):
        checkpoint = tiny_checkpoint(
            folder / architecture, "packed-multiply", shape=shape, architecture=architecture
        )
        seeds.append(folder / f"{architecture}.gguf")
        convert(checkpoint, seeds[-1], embed_type="f16")
    return seeds


def rejected(file: Path) -> bool:
    """Whether our own checks reject this file."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", GATE, str(file)], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    if ended.returncode == 1 and ended.stdout:
        print(f"rejected: {ended.stdout.strip()}", file=sys.stderr)
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("driver", type=Path, help="fuzz_gguf, built with BITEXPORT_SANITIZE")
    parser.add_argument("--executions", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1, help="random seed (default 1)")
    parser.add_argument(
        "--findings", type=Path, required=True, help="folder for the files that are found; emptied first"
    )
    arguments = parser.parse_args()
    findings: Path = arguments.findings
    findings.mkdir(parents=True, exist_ok=True)
    for old in findings.glob("*.gguf"):
        old.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        command = [arguments.driver, "--executions", str(arguments.executions), "--seed", str(arguments.seed)]
        ended = subprocess.run(
            [*command, "--findings", findings, *make_seeds(Path(scratch))], stdout=subprocess.PIPE, text=True
        )
    if ended.returncode not in (0, 3):
        sys.exit(f"the driver ended with status {ended.returncode}")
    report = json.loads(ended.stdout)
    let_through = sorted(file.name for file in findings.glob("*.gguf") if not rejected(file))
    print(json.dumps({**report, "let_through": let_through}))
    sys.exit(3 if let_through else 0)


if __name__ == "__main__":
    main()
