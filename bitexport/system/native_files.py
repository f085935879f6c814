"""Finds our native libraries and the files that are installed next to them.

Separate from :mod:`bitexport.runtime`, so that reading such a file does not load a library.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bitexport.errors import NativeLibraryError

DIRECTORY_VARIABLE = "BITEXPORT_LIB_DIR"
_PACKAGE = Path(__file__).resolve().parent.parent
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_PREFIX = "" if sys.platform == "win32" else "lib"


def library_name(name: str) -> str:
    """The file name of a library on this system: ``library_name("llama")`` -> ``libllama.so``."""
    return f"{_PREFIX}{name}{_SUFFIX}"


def library_file(name: str) -> Path:
    """The path of one of our libraries: ``library_file("ggml-base")`` -> ``.../libggml-base.so``."""
    return find_library_dir() / library_name(name)


def find_library_dir() -> Path:
    """The folder of our native libraries.

    ``$BITEXPORT_LIB_DIR`` if set; otherwise ``bitexport/lib``, as in a wheel; otherwise ``build/native/lib``
    of the source checkout.

    Raises:
        NativeLibraryError: none of them contains libllama.
    """
    name = library_name("llama")
    override = os.environ.get(DIRECTORY_VARIABLE)
    if override:
        chosen = Path(override).resolve()
        if not (chosen / name).is_file():
            raise NativeLibraryError(
                f"{DIRECTORY_VARIABLE} is {override}, which does not contain {name}; "
                "give the folder of bitexport's libraries, or unset it"
            )
        return chosen
    folders = [_PACKAGE / "lib", _PACKAGE.parent / "build" / "native" / "lib"]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    raise NativeLibraryError(
        f"no {name} in {' or '.join(map(str, folders))}; run `make native` in a source checkout, "
        f"install a wheel that includes it, or set {DIRECTORY_VARIABLE}"
    )


def server_program() -> Path:
    """The path of llama-server, which is installed beside the libraries.

    Raises:
        NativeLibraryError: it is not there.
    """
    program = find_library_dir() / ("llama-server.exe" if sys.platform == "win32" else "llama-server")
    if not program.is_file():
        raise NativeLibraryError(
            f"{program} is missing, which serves models; run `make native` in a source checkout, or install "
            "a wheel that includes it"
        )
    if not os.access(program, os.X_OK):
        raise NativeLibraryError(f"{program} is not executable; chmod +x it, or install the wheel again")
    return program


def find_conversion_dir() -> Path:
    """The folder with llama.cpp's Python packages: ``conversion``, and ``gguf`` in ``gguf-py``.

    ``llama.cpp`` beside our libraries, as in a wheel; otherwise the source that the build unpacked.

    Raises:
        NativeLibraryError: neither is there.
    """
    libraries = find_library_dir()
    folders = [libraries / "llama.cpp", libraries.parent / "llama.cpp-source"]
    for folder in folders:
        if (folder / "conversion" / "__init__.py").is_file():
            return folder
    raise NativeLibraryError(
        f"llama.cpp's conversion package is not in {' or '.join(map(str, folders))}; run `make native` in a "
        "source checkout, or install a wheel that includes it"
    )
