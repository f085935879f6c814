"""The text: sources of the Python standard library, found on the machine at run time.

Nothing of it is kept in this repository. Whether a file is held out depends on a hash of its path inside the
library and on nothing else, so that another Python version holds out (nearly) the same modules.
"""

from __future__ import annotations

import hashlib
import sysconfig
import tokenize
from pathlib import Path, PurePath

from bitexport.errors import UsageError

# Folders without prose or ordinary code: other people's packages, tests, tables that a program wrote.
SKIPPED_FOLDERS = frozenset(
    [
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "__pycache__",
        "pydoc_data",
        "encodings",
        "lib2to3",
        "lib-dynload",
    ]
)
# The same for single files. _sysconfigdata_*.py is a list of the paths of the machine that built Python.
SKIPPED_FILES = ("html/entities.py", "locale.py", "stringprep.py", "_sysconfigdata*.py", "LICENSE*")
# Less text than this, and the machine has a trimmed Python: a model would only learn it by heart.
MIN_CHARACTERS = 2_000_000


def standard_library() -> Path:
    """The folder of this interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_files(root: Path) -> list[Path]:
    """The ``.py`` files below ``root`` that hold human-written text, sorted by path."""
    found = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if (
            path.is_file()
            and SKIPPED_FOLDERS.isdisjoint(relative.parts[:-1])
            and not any(map(relative.match, SKIPPED_FILES))
        ):
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def is_held_out(relative_path: PurePath, percent: int) -> bool:
    """True for about ``percent`` in 100 paths, always the same ones."""
    digest = hashlib.sha256(relative_path.as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < percent


def held_out_text(held_out_percent: int = 5, text_dir: str = "", max_bytes: int | None = None) -> str:
    """The held-out files below ``text_dir`` (empty: the standard library), a line break between them.

    At most ``max_bytes`` bytes, without splitting a line. A file that repeats another, white space aside,
    counts once. The same Python version gives the same text on every machine.

    Raises:
        UsageError: too little text, or none on one side of the split.
    """
    root = Path(text_dir) if text_dir else standard_library()
    firsts: dict[str, tuple[bool, str]] = {}  # by the text without its white space
    for path in source_files(root):
        text = text_of(path)
        firsts.setdefault(
            " ".join(text.split()), (is_held_out(path.relative_to(root), held_out_percent), text)
        )
    firsts.pop("", None)
    size, least = sum(len(text) for _, text in firsts.values()), 1 if text_dir else MIN_CHARACTERS
    held_out = [text for held, text in firsts.values() if held]
    if size < least or not 0 < len(held_out) < len(firsts):
        found = f"{size:,} characters in {len(firsts)} files, {len(held_out)} of them held out"
        raise UsageError(
            f"corpus {root}: {found}; expected at least {least:,} and files on both sides; "
            "give a larger text_dir, or use a Python with its full standard library"
        )
    whole = "\n".join(held_out)
    if max_bytes is None or len(whole.encode()) <= max_bytes:
        return whole
    cut = whole.encode()[:max_bytes].decode(errors="ignore")
    return cut[: cut.rfind("\n") + 1]


def text_of(path: Path) -> str:
    """The file's text in the encoding that it declares, with ``\\n`` as line end; empty if undecodable."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):  # a few sources are broken on purpose
        return ""
