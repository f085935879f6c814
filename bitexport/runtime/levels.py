"""Which libggml-cpu this process loads.

A build for one machine has one, next to the other libraries. A wheel has one for each level of instruction
sets (native/levels/levels.cmake): it runs on every CPU of its architecture and uses what each of them has.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from bitexport.errors import NativeLibraryError
from bitexport.system.native_files import find_library_dir, library_file, library_name

#: Names a level to load instead of the best one.
LEVEL_VARIABLE = "BITEXPORT_LEVEL"


def cpu_library_file() -> Path:
    """The path of the libggml-cpu for this CPU, or of the one that ``$BITEXPORT_LEVEL`` names.

    Raises:
        NativeLibraryError: our libraries are missing, this CPU can run none of the levels, or the variable
            names a level that it cannot run.
    """
    folder = find_library_dir() / "levels"
    if not folder.is_dir():
        return library_file("ggml-cpu")
    usable = [name for name in _usable(folder.parent) if (folder / name).is_dir()]
    if not usable:
        raise NativeLibraryError(
            "this CPU lacks instructions that every level of this build needs (SSE4.2 and POPCNT); "
            "on a virtual machine, choose another CPU model for it"
        )
    chosen = os.environ.get(LEVEL_VARIABLE) or usable[-1]
    if chosen not in usable:
        raise NativeLibraryError(
            f"{LEVEL_VARIABLE} is {chosen}; expected one of those that this CPU can run: {', '.join(usable)}"
        )
    return folder / chosen / library_name("ggml-cpu")


@functools.cache
def _usable(libraries: Path) -> list[str]:
    """The levels that this CPU can run, slowest first."""
    file = libraries / library_name("bitexport-level")
    try:
        function = ctypes.CDLL(str(file)).bitexport_usable_levels
    except (OSError, AttributeError) as error:
        raise NativeLibraryError(f"{file} cannot be loaded: {error}; install bitexport again") from error
    function.restype = ctypes.c_char_p
    names: bytes = function()
    return names.decode().split()
