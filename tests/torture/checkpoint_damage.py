"""Fuzzes convert with damaged checkpoints: each must be converted or raise a :class:`BitexportError`.

    python -m tests.fuzz.fuzz_checkpoint --executions 200000 --findings DIR

Every execution damages one file of a small checkpoint (safetensors, index, config.json, tokenizer files) and
converts it without writing; one in fifty is written and loaded. Any other exception, a hang, or excessive
memory is a failure, and the damaged file is kept. Exit status: 0 without failures, 3 otherwise. Prints one
JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bitexport.convert import convert
from bitexport.errors import BitexportError
from tests.support.tiny_models import Shape, tiny_checkpoint

HANG_SECONDS = 20
MOST_MEMORY = 4 << 30  # address space beyond what the imports took
WRITTEN_ONE_IN = 50
ENOUGH_FAILURES = 20

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 127, 128, 255, 256, 65535, 65537, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30,
    0.5, -0.0, 1e-45, 1e308, float("inf"), float("nan"),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, False, "", "silu", "bitnet", "../../etc/passwd", "\x00", "\ud800", "é" * 300,
    [], [[]], [0], ["BitNetForCausalLM"], {}, {"": {}},
)  # fmt: skip


class HangError(Exception):
    """An execution took too long."""


def _alarm(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise HangError(f"still running after {HANG_SECONDS} s")


def damage_json(data: bytes, chance: random.Random) -> bytes:
    """Replace a value of a JSON document, remove or rename a key, or damage its text."""
    if chance.random() < 0.15:
        return damage_bytes(data, chance)
    document = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        entries = node.items() if isinstance(node, dict) else enumerate(node)
        for index, (key, value) in enumerate(entries):
            if index < 60:  # the first entries of a long list represent all of them
                places.append((node, key))
                if isinstance(value, (dict, list)):
                    walk(value)

    walk(document)
    if not places:
        return damage_bytes(data, chance)
    for _ in range(chance.randint(1, 2)):
        node, key = chance.choice(places)
        kind = chance.random()
        if kind < 0.2 and isinstance(node, dict):
            node.pop(key, None)
        elif kind < 0.3 and isinstance(node, dict):
            node[f"{key}x"] = node.get(key)
        elif isinstance(node, dict) or key < len(node):
            node[key] = chance.choice(VALUES)
    try:
        return json.dumps(document).encode("utf-8", errors="surrogatepass")
    except ValueError:  # a value that contains itself
        return b"{}"


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """Change, cut off, duplicate or insert bytes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        kind = chance.random()
        if kind < 0.5 and at < len(changed):
            changed[at] = chance.randrange(256)
        elif kind < 0.65:
            del changed[at:]
        elif kind < 0.8:
            changed[at:at] = changed[chance.randrange(len(changed) + 1) :][: chance.randint(1, 64)]
        else:
            changed[at:at] = chance.randbytes(chance.randint(1, 16))
    return bytes(changed)


def damage_safetensors(data: bytes, chance: random.Random) -> bytes:
    """Damage the document of the header, its length, or the tensors' bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], data[8 + size :]
    kind = chance.random()
    if kind < 0.7:
        header = damage_json(header, chance)
        size = len(header)
    elif kind < 0.8:
        size = chance.choice([n for n in NUMBERS if isinstance(n, int) and 0 <= n < 2**64])
    else:
        body = damage_bytes(body, chance)
    return struct.pack("<Q", size) + header + body


def damage_for(file: Path) -> Callable[[bytes, random.Random], bytes]:
    if file.suffix == ".safetensors":
        return damage_safetensors
    return damage_json if file.suffix == ".json" else damage_bytes


def make_seeds(folder: Path) -> list[Path]:
    """Very small checkpoints: one for every packing, one of them in shards."""
    shape = Shape(hidden=128, ffn=128, layers=1, heads=2, kv_heads=1, vocab=400, context=32)
    return [
        tiny_checkpoint(folder / "master", "master", shape=shape),
        tiny_checkpoint(folder / "multiply", "packed-multiply", shape=shape, shards=2),
        tiny_checkpoint(folder / "divide", "packed-divide", shape=shape, tied=False),
        tiny_checkpoint(folder / "llama", "packed-divide", shape=shape, architecture="llama"),
    ]


def run_one(seed: Path, index: int, base: int, folder: Path) -> str:
    """Run one execution in ``folder``, which is emptied unless it fails; returns the outcome."""
    chance = random.Random(base * 1_000_003 + index)
    for file in seed.iterdir():
        (folder / file.name).hardlink_to(file)
    weights = chance.random() < 0.5
    files = sorted(f for f in seed.iterdir() if (f.suffix == ".safetensors") == weights)
    victim = chance.choice(files)
    (folder / victim.name).unlink()
    (folder / victim.name).write_bytes(damage_for(victim)(victim.read_bytes(), chance))
    signal.alarm(HANG_SECONDS)
    try:
        convert(
            folder,
            folder / "out.gguf",
            type=chance.choice(("i2_s", "f16")),
            embed_type="f16",
            dry_run=index % WRITTEN_ONE_IN != 0,
        )
        outcome = "converted"
    except BitexportError as error:
        outcome = type(error).__name__
    finally:
        signal.alarm(0)
    for file in folder.iterdir():
        file.unlink()
    return outcome


def run_all(executions: int, base: int, findings: Path) -> tuple[Counter[str], int]:
    """Run all executions, keep failures, and return the outcomes and the number of failures."""
    outcomes: Counter[str] = Counter()
    failures = 0
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        seeds = make_seeds(Path(scratch))
        convert(seeds[0], Path(scratch) / "warm.gguf", embed_type="f16")  # everything imported
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))
        folder = Path(scratch) / "run"
        for index in range(executions):
            folder.mkdir(exist_ok=True)
            try:
                outcomes[run_one(seeds[index % len(seeds)], index, base, folder)] += 1
            except BaseException as error:  # a panic in Rust is not an Exception
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures += 1
                print(f"FAILURE {index}: {type(error).__name__}: {error}"[:400], file=sys.stderr)
                shutil.copytree(folder, findings / f"{type(error).__name__}-{index}", dirs_exist_ok=True)
                shutil.rmtree(folder)
                if failures >= ENOUGH_FAILURES:
                    break
            if (index + 1) % 10_000 == 0:
                print(f"{index + 1} executions", file=sys.stderr)
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--executions", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1, help="random seed (default 1)")
    parser.add_argument("--findings", type=Path, required=True, help="folder for failures")
    arguments = parser.parse_args()
    arguments.findings.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # NumPy's, about extreme numbers
    signal.signal(signal.SIGALRM, _alarm)
    outcomes, failures = run_all(arguments.executions, arguments.seed, arguments.findings)
    print(json.dumps({"executions": sum(outcomes.values()) + failures, "failures": failures, **outcomes}))
    sys.exit(3 if failures else 0)


if __name__ == "__main__":
    main()
