"""Damaged checkpoints through ``inspect``, ``convert``, and ``load`` of what it wrote."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitexport
from bitexport.convert import convert
from bitexport.errors import BitexportError
from bitexport.inspect import inspect
from bitexport.runtime.trial import VARIABLE
from tests.checkpoint.test_hostile import more_tensors, post_processor, pre_tokenizer, replace
from tests.support.tokenizer_files import edit
from tests.torture.checkpoint_damage import damage_for, make_seeds
from tests.torture.workers import GIB, TortureError

SHARE = 15
#: llama.cpp's converter imports PyTorch and transformers, which takes some seconds on a quiet machine.
SECONDS = 60
MEMORY = GIB

#: How often an output is written, and then loaded; otherwise convert only reads.
_WRITTEN_ONE_IN = 20
_HEALTH_ONE_IN = 10
#: How often something takes the place of a file, or a part of one has no end: most take some seconds.
_DIRECTED_ONE_IN = 200

_NAMES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "merges.txt",
    "modules.json",
)


def prepare(folder: Path) -> None:
    make_seeds(folder)


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:
    os.environ[VARIABLE] = "0"  # it loads what convert wrote here
    seed = chance.choice(sorted(prepared.iterdir()))
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    directed = chance.randrange(_DIRECTED_ONE_IN) == 0
    weights = chance.random() < 0.5
    victim = chance.choice([f for f in sorted(seed.iterdir()) if (f.suffix == ".safetensors") == weights])
    for file in seed.iterdir():
        if file != victim and not directed:
            (checkpoint / file.name).hardlink_to(file)
        elif directed:
            (checkpoint / file.name).write_bytes(file.read_bytes())
    if directed:
        chance.choice(_DIRECTED)(checkpoint, chance)
    else:
        (checkpoint / victim.name).write_bytes(damage_for(victim)(victim.read_bytes(), chance))
    inspected = _outcome(lambda: inspect(checkpoint, health=chance.randrange(_HEALTH_ONE_IN) == 0))
    output = folder / "out.gguf"
    kind = chance.choice(("i2_s", "f16"))
    written = chance.randrange(_WRITTEN_ONE_IN) == 0
    converted = _outcome(
        lambda: convert(checkpoint, output, type=kind, embed_type="f16", dry_run=not written)
    )
    if left := sorted(file.name for file in folder.iterdir() if file not in (checkpoint, output)):
        raise TortureError(f"convert left {left}")
    if output.exists() != (written and converted == "worked"):
        raise TortureError(
            f"convert {converted}, and {'wrote' if output.exists() else 'did not write'} a file"
        )
    if converted == "worked" and written:
        model = bitexport.load(output, n_ctx=32, n_threads=1)
        model.eval([3])
        model.close()
        return "worked, and loaded"
    return "worked" if converted == "worked" else f"refused: {converted}" + _also(inspected)


def _also(inspected: str) -> str:
    return " by convert alone" if inspected == "worked" else ""


def _outcome(use: Callable[[], object]) -> str:
    try:
        use()
    except BitexportError as error:
        if "\n" in str(error) or not str(error):
            raise TortureError(f"not one line: {str(error)!r}") from error
        return type(error).__name__
    return "worked"


def _not_a_file(checkpoint: Path, chance: random.Random) -> None:
    replace(checkpoint / chance.choice(_NAMES), chance.choice(("a FIFO", "a device", "1099511627776 bytes")))


def _size(checkpoint: Path, chance: random.Random) -> None:
    key = chance.choice(
        ("num_hidden_layers", "max_position_embeddings", "vocab_size", "num_experts", "head_dim")
    )
    edit(checkpoint, lambda config: config.update({key: 10 ** chance.randrange(3, 12)}), "config.json")


def _tensors(checkpoint: Path, chance: random.Random) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    if (checkpoint / "model.safetensors").exists():
        more_tensors(
            checkpoint, {f"x{number}": entry for number in range(chance.choice((1, 10_000, 400_000)))}
        )


def _tokenizer(checkpoint: Path, chance: random.Random) -> None:
    ends: list[dict[str, Any]] = [
        {
            "post_processor": post_processor(
                chance.choice((10, 100, 10_000)), chance.choice((10, 100, 10_000))
            )
        },
        {"pre_tokenizer": pre_tokenizer(chance.choice(("(", r"(\w+\s*)+$!", "(?=", ".*", "")))},
    ]
    edit(checkpoint, lambda document: document.update(chance.choice(ends)))


_DIRECTED: tuple[Callable[[Path, random.Random], None], ...] = (_not_a_file, _size, _tensors, _tokenizer)
