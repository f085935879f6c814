"""Damages files of checkpoints: safetensors, and JSON such as config.json and the tokenizer's files."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.tiny_models import Shape, tiny_checkpoint

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 127, 128, 255, 256, 65535, 65537, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30,
    0.5, -0.0, 1e-45, 1e308, float("inf"), float("nan"),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, False, "", "silu", "bitnet", "../../etc/passwd", "\x00", "\ud800", "é" * 300,
    [], [[]], [0], ["BitNetForCausalLM"], {}, {"": {}},
)  # fmt: skip


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
