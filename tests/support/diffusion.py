"""Checkpoints of block diffusion: tiny ones whose config.json says that they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

#: The pad token of the tiny models.
MASK = 2


def as_block_diffusion(checkpoint: Path, target: Path, **settings: object) -> Path:
    """A copy of ``checkpoint`` with block diffusion in config.json; blocks of 4 by default."""
    shutil.copytree(checkpoint, target)
    config = json.loads((target / "config.json").read_text())
    found = {"block_size": 4, "mask_token_id": MASK, "token_shift": True} | settings
    config["block_diffusion"] = {key: value for key, value in found.items() if value is not None}
    (target / "config.json").write_text(json.dumps(config))
    return target
