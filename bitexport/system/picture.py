"""Shared by all pictures: matplotlib without a display, and a check that a picture can be written.

matplotlib comes with the extra ``plot``; it is imported only when a picture is checked or drawn.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from bitexport.errors import UsageError
from bitexport.system.files import check_folder

#: The supported formats, by file extension.
KINDS = ("png", "svg")


def kind_of(path: Path) -> str:
    """The format of a picture, ``"png"`` or ``"svg"``, from its file name.

    Raises:
        UsageError: the name has another extension.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise UsageError(f"{path}: a picture's name must end in .png or .svg; choose one of these")
    return kind


def check_picture(path: Path) -> None:
    """Check that a picture can be drawn and written to ``path``; call it before long work begins.

    Raises:
        UsageError: the name does not have the extension of a picture.
        OutputError: the folder is missing or not writable.
        ModuleNotFoundError: matplotlib is not installed.
    """
    kind_of(path)
    check_folder(path)
    pyplot()


def pyplot() -> Any:
    """``matplotlib.pyplot`` with a backend that draws to files."""
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    from matplotlib import pyplot

    return pyplot


def render(figure: Any, kind: str) -> bytes:
    """The content of a picture file of format ``kind``, without the date. Closes the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    pyplot().close(figure)
    return buffer.getvalue()
