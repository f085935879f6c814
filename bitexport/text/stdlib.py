"""The sources of the Python standard library as text, found on the machine at run time.

None of them are stored in this repository. Whether a file is held out depends only on a hash of its path
inside the library, so that another Python version holds out (nearly) the same modules.
"""

from __future__ import annotations

import hashlib
import sysconfig
import tokenize
from pathlib import Path, PurePath

from bitexport.errors import UsageError

# Folders without prose or ordinary code: third-party packages, tests, generated tables.
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
# The same for single files. _sysconfigdata_*.py lists paths of the machine that built Python.
SKIPPED_FILES = ("html/entities.py", "locale.py", "stringprep.py", "_sysconfigdata*.py", "LICENSE*")
# With less text than this, the machine has a trimmed Python, and a model would only memorize it.
MIN_CHARACTERS = 2_000_000


def standard_library() -> Path:
    """The folder of this interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_files(root: Path) -> list[Path]:
    """The ``.py`` files below ``root`` with human-written text, sorted by path."""
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
    """True for about ``percent`` of 100 paths, and always for the same ones."""
    digest = hashlib.sha256(relative_path.as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < percent


def held_out_text(held_out_percent: int = 5, text_dir: str = "", max_bytes: int | None = None) -> str:
    """The held-out files below ``text_dir`` (empty: the standard library), joined by line breaks.

    At most ``max_bytes`` bytes, without splitting a line. Files that differ only in white space count once.
    The same Python version gives the same text on every machine.

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
    joined = "\n".join(held_out)
    if max_bytes is None or len(joined.encode()) <= max_bytes:
        return joined
    cut = joined.encode()[:max_bytes].decode(errors="ignore")
    return cut[: cut.rfind("\n") + 1]


def text_of(path: Path) -> str:
    """The file's text in its declared encoding, with ``\\n`` line ends; empty if it cannot be decoded."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):  # a few sources are broken on purpose
        return ""
