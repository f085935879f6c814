"""Where our native libraries are, and what is installed beside them.

Apart from :mod:`bitexport.runtime`: who only reads a file beside the libraries loads none of them.
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
    """The name of a library's file on this system: ``library_name("llama")`` -> ``libllama.so``."""
    return f"{_PREFIX}{name}{_SUFFIX}"


def library_file(name: str) -> Path:
    """The file of one of our libraries: ``library_file("ggml-base")`` -> ``.../libggml-base.so``."""
    return find_library_dir() / library_name(name)


def find_library_dir() -> Path:
    """The folder that holds our libllama and its companions.

    ``$BITEXPORT_LIB_DIR`` when set; else ``bitexport/lib``, where a wheel has it; else
    ``build/native/lib`` of the source checkout.

    Raises:
        NativeLibraryError: there is no libllama in any of them.
    """
    name = library_name("llama")
    override = os.environ.get(DIRECTORY_VARIABLE)
    if override:
        chosen = Path(override).resolve()
        if not (chosen / name).is_file():
            raise NativeLibraryError(
                f"{DIRECTORY_VARIABLE} is {override}, which holds no {name}; "
                "give the folder of bitexport's libraries, or unset it"
            )
        return chosen
    places = [_PACKAGE / "lib", _PACKAGE.parent / "build" / "native" / "lib"]
    for place in places:
        if (place / name).is_file():
            return place
    raise NativeLibraryError(
        f"no {name} in {' or '.join(map(str, places))}; run `make native` in a source checkout, "
        f"install a wheel that carries it, or set {DIRECTORY_VARIABLE}"
    )
