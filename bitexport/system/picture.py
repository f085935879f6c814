"""What all pictures share: matplotlib without a display, and the check that a picture can be written.

matplotlib is the extra ``plot``; it is imported when a picture is checked or drawn, not before.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from bitexport.errors import UsageError
from bitexport.system.files import check_folder

#: By the end of the file's name.
KINDS = ("png", "svg")


def kind_of(path: Path) -> str:
    """``"png"`` or ``"svg"``.

    Raises:
        UsageError: the name ends otherwise.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise UsageError(f"{path}: a picture's name must end in .png or .svg; choose one of these")
    return kind


def check_picture(path: Path) -> None:
    """Before long work: can its result be drawn and written to ``path``?

    Raises:
        UsageError: the name says no kind of picture.
        OutputError: the folder is missing or refuses files.
        ModuleNotFoundError: matplotlib is not installed.
    """
    kind_of(path)
    check_folder(path)
    pyplot()


def pyplot() -> Any:
    """``matplotlib.pyplot``, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    from matplotlib import pyplot

    return pyplot


def encode(figure: Any, kind: str) -> bytes:
    """The figure as a file of this kind, without today's date. It is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    pyplot().close(figure)
    return buffer.getvalue()
