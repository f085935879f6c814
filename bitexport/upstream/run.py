"""Runs :mod:`.extract` in a process of its own and reads the recipe that it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bitexport import errors
from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.adapter import MergedCheckpoint
from bitexport.errors import BitexportError, UnsupportedError
from bitexport.system.native_files import find_conversion_dir
from bitexport.upstream.recipe import DESCRIPTION, ERROR, GIVEN, Recipe, load_recipe

#: The extra that brings what llama.cpp's converters import.
EXTRA = "pip install 'bitexport[parity]'"

#: Nothing is fetched from the hub, and nobody is asked whether to run a checkpoint's code.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def read_recipe(checkpoint: Checkpoint) -> Recipe:
    """What a GGUF file of a checkpoint consists of, as llama.cpp's class for its architecture says.

    Raises:
        UnsupportedError: the class refuses the checkpoint, or a package that it imports is missing.
        CheckpointError, TokenizerError: the checkpoint is damaged.
        NativeLibraryError: llama.cpp's packages are missing.
    """
    source = find_conversion_dir()
    package = Path(__file__).resolve().parents[2]
    inherited = os.environ.get("PYTHONPATH")
    paths = [source / "gguf-py", source, package, *([inherited] if inherited else [])]
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    with tempfile.TemporaryDirectory(prefix="bitexport-") as name:
        folder = Path(name)
        (folder / GIVEN).write_text(json.dumps(_given(checkpoint)), encoding="utf-8")
        command = [sys.executable, "-m", "bitexport.upstream.extract", str(checkpoint.path), str(folder)]
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return take_recipe(folder, done.stderr)


def _given(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the program has to know to see the same weights: what the user said about the checkpoint."""
    adapter = checkpoint.adapter.resolve() if isinstance(checkpoint, MergedCheckpoint) else None
    return {"config": dict(checkpoint.config), "adapter": adapter and str(adapter)}


def take_recipe(folder: Path, output: str = "") -> Recipe:
    """The recipe that the program wrote.

    Args:
        output: what it printed, for when it was killed.

    Raises:
        BitexportError: there is none, see :func:`read_recipe`.
    """
    if (folder / DESCRIPTION).is_file():
        return load_recipe(folder)
    try:
        found = json.loads((folder / ERROR).read_text(encoding="utf-8"))
    except OSError:
        lines = [line for line in output.splitlines() if line.strip()]
        found = {"class": "Refused", "message": lines[-1].strip() if lines else "it ended without a message"}
    kind, message = found["class"], found["message"]
    if kind == "ImportError":
        raise UnsupportedError(
            "this architecture is converted with llama.cpp's own converter, which needs the package "
            f"{message}: {EXTRA}"
        )
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, BitexportError):
        raise known(message)
    raise UnsupportedError(
        f"llama.cpp's converter for this architecture refuses the checkpoint ({message}); expected the "
        "config.json and the tensors of that architecture as transformers saves them"
    )
