"""Writes files and folders completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitexport.errors import OutputError


def check_folder(path: Path) -> None:
    """Raise OutputError if a file cannot be written to ``path``; call it before long work begins."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; expected a file name")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: folder {path.absolute().parent} does not exist; create it first")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise _write_error(path, error) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, flush, and rename; an existing file is replaced.

    Raises:
        OutputError: it cannot be written; an existing file is unchanged.
    """
    check_folder(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=".", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # temporary files are private; the result has the usual permissions
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, advice: str) -> Iterator[None]:
    """Remove ``folder`` if the block that writes it fails or is interrupted.

    Raises:
        OutputError: writing to the disk failed; the message ends in ``advice``.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        # on a full disk, torch.save raises RuntimeError and safetensors its own SafetensorError
        is_disk_error = (
            isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError"
        )
        if not is_disk_error:
            raise
        raise OutputError(f"{folder}: cannot be saved: {error}; {advice}") from error


def _write_error(path: Path, error: OSError) -> OutputError:
    reason = (error.strerror or str(error)).lower()
    return OutputError(f"{path}: {reason}; free some space or choose another location")
