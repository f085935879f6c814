"""Fuzzes everything that opens a GGUF file in this process: inspect, a session, load and text generation.

    python -m tests.fuzz.fuzz_open --executions 100000 --findings DIR [--no-trial]

Each execution damages a small file (tests/fuzz/gguf_mutator.py) and opens it in a worker process, which must
survive: any other exception than a :class:`BitexportError`, a signal, or a hang is a failure, and the file is
kept. With ``--no-trial`` the worker skips the trial in a child process (bitexport.runtime.trial), which shows
what only the trial stops. Exit status: 0 without failures, 3 otherwise. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

HANG_SECONDS = 15
SPARE_MEMORY = 5 << 30  # address space beyond what the imports took; most of it is reserved for threads
ENOUGH_FAILURES = 30


def make_seeds(folder: Path) -> list[Path]:
    """Small files of several architectures, tokenizers and types."""
    from bitexport.convert import convert
    from tests.support.tiny_models import Shape, tiny_checkpoint

    seeds = []
    for architecture, tokenizer in (
        ("bitnet", "gpt2"), ("llama", "gpt2"), ("llama", "llama2"), ("gemma3", "gpt2"), ("qwen3", "gpt2"),
    ):  # fmt: skip
        shape = Shape(
            hidden=128, ffn=256, layers=1, heads=2, kv_heads=1, vocab=480 if tokenizer == "llama2" else 400
        )
        name = f"{architecture}-{tokenizer}"
        source = tiny_checkpoint(
            folder / name, "packed-multiply", shape=shape, architecture=architecture, tokenizer=tokenizer
        )
        seeds.append(folder / f"{name}.gguf")
        convert(source, seeds[-1], embed_type="f16")
    return seeds


def use(path: Path, index: int) -> str:
    """Open a file in one of several ways; returns the outcome."""
    import bitexport
    from bitexport.errors import BitexportError
    from bitexport.inspect import inspect
    from bitexport.runtime.session import Session

    outcomes = []
    try:
        inspect(path, health=True)
        outcomes.append("inspected")
    except BitexportError as error:
        outcomes.append(type(error).__name__)
    try:
        if index % 2:
            with Session(path, n_ctx=16, n_threads=2, exact=bool(index % 4 == 1)) as session:
                session.logits((session.tokenize("Hello \x01水 123\n") or [0])[:8])
        else:
            model = bitexport.load(path, n_ctx=32, n_threads=2)
            try:
                model("Hi 水\x02", max_tokens=3)
            finally:
                model.close()
        outcomes.append("ran")
    except BitexportError as error:
        outcomes.append(type(error).__name__)
    return " ".join(outcomes)


def work(seeds: list[Path], first: int, last: int, base: int, scratch: Path) -> None:
    """The worker: prints the number of each execution before it, and its outcome after it."""
    from bitexport.gguf.checks.libllama import known
    from bitexport.runtime.library import bind
    from tests.fuzz.gguf_mutator import mutant

    warnings.simplefilter("ignore")
    bind()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_MEMORY, resource.RLIM_INFINITY))
    names = tuple(sorted(known().architectures))
    for index in range(first, last):
        chance = random.Random(base * 1_000_003 + index)
        path = scratch / "x.gguf"
        path.unlink(missing_ok=True)
        path.write_bytes(mutant(seeds[index % len(seeds)], names, chance))
        print(index, end=" ", flush=True)
        signal.alarm(HANG_SECONDS)
        outcome = use(path, index // len(seeds))
        signal.alarm(0)
        print(outcome, flush=True)


def run_all(arguments: argparse.Namespace, scratch: Path) -> tuple[Counter[str], list[str]]:
    make_seeds(scratch)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    environment = {**os.environ, "XDG_CACHE_HOME": str(scratch / "cache")}
    if arguments.no_trial:
        environment["BITEXPORT_TRIAL"] = "0"
    first = arguments.first
    last = first + arguments.executions
    while first < last and len(failures) < ENOUGH_FAILURES:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.fuzz_open",
            "--worker",
            str(scratch),
            str(first),
            str(last),
        ]
        command += ["--seed", str(arguments.seed), "--findings", str(arguments.findings)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        lines = ended.stdout.splitlines()
        outcomes.update(line.partition(" ")[2] for line in lines if line.partition(" ")[2])
        if ended.returncode == 0:
            break
        first = int(lines[-1].split()[0]) + 1
        words = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        failures.append(f"{first - 1}: status {ended.returncode}: {words}")
        print(f"FAILURE {failures[-1]}", file=sys.stderr, flush=True)
        shutil.copy(scratch / "x.gguf", arguments.findings / f"{arguments.seed}-{first - 1}.gguf")
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--executions", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first execution")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default 1)")
    parser.add_argument("--findings", type=Path, required=True, help="folder for failures")
    parser.add_argument("--no-trial", action="store_true", help="do not try files in a child process")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        scratch, first, last = arguments.worker
        seeds = sorted(Path(scratch).glob("*-*.gguf"))
        work(seeds, int(first), int(last), arguments.seed, Path(scratch))
        return
    arguments.findings.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        outcomes, failures = run_all(arguments, Path(scratch))
    print(
        json.dumps({"executions": sum(outcomes.values()) + len(failures), "failures": failures, **outcomes})
    )
    sys.exit(3 if failures else 0)


if __name__ == "__main__":
    main()
