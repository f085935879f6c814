"""Remembers which files our libllama has run, so that each has to be tried only once.

A proof is a file in ``$XDG_CACHE_HOME/bitexport/proven`` (``~/.cache/bitexport/proven``), empty or with what
:mod:`bitexport.runtime.facts` found out. Its name is a hash of what changes whenever a file does: device,
inode, size, and the times of the last change of its content and of its attributes, for every part of a split
model; and of the same for our libraries. Failures are not remembered. A folder that cannot be written only
costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitexport.errors import OutputError
from bitexport.runtime.levels import cpu_library_file
from bitexport.system.native_files import library_file

#: So that the folder does not grow forever; the oldest half is removed.
_MOST = 4096

_proven: set[str] = set()


def identity(parts: Iterable[Path]) -> str:
    """The name of the proof of a model: 64 hexadecimal digits.

    Raises:
        OSError: one of the files does not exist.
    """
    digest = hashlib.sha256()
    for path in (*parts, library_file("llama"), library_file("ggml-base"), cpu_library_file()):
        status = path.stat()
        fields = (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        digest.update(repr(fields).encode())
    return digest.hexdigest()


def is_proven(name: str) -> bool:
    """Whether :func:`remember` was called for an identity, in this process or an earlier one."""
    if name in _proven:
        return True
    folder = _folder()
    return folder is not None and (folder / name).is_file()


def recall(name: str) -> Any:
    """The note that :func:`remember` was given for an identity; None without one."""
    folder = _folder()
    if folder is None:
        return None
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def remember(name: str, note: Any = None) -> None:
    """Note that the model with an identity runs, and what was found out about it.

    Args:
        name: its identity.
        note: a JSON document; None to keep the one that is there, if any.
    """
    _proven.add(name)
    folder = _folder()
    if folder is None:
        return
    from bitexport.system.files import write_atomically  # not needed for a file that is proven

    with contextlib.suppress(OSError, OutputError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_room(folder)
        if note is None:
            (folder / name).touch()
        else:
            write_atomically(folder / name, json.dumps(note).encode())


def _make_room(folder: Path) -> None:
    proofs = list(folder.iterdir())
    if len(proofs) < _MOST:
        return
    proofs.sort(key=lambda proof: proof.stat().st_mtime_ns)
    for proof in proofs[: _MOST // 2]:
        proof.unlink(missing_ok=True)


def _folder() -> Path | None:
    """Where proofs are kept; None without a home, or if the folder is somebody else's."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    folder = cache / "bitexport" / "proven"
    with contextlib.suppress(OSError):
        if hasattr(os, "getuid") and folder.exists() and folder.stat().st_uid != os.getuid():
            return None
    return folder
