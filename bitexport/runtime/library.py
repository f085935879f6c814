"""Binds llama-cpp-python to our native libraries.

Its Python files of our libraries' release lie beside them, so that structs agree; another llama-cpp-python
may be installed and is left alone. They load the libllama in their own folder, unless ``LLAMA_CPP_LIB_PATH``
names another one before they are imported. Two libllamas in one process would share symbols and crash, and a
stock one does not support I2_S: so if another one is already loaded, that is an error that names it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

from bitexport.errors import NativeLibraryError
from bitexport.runtime import log
from bitexport.runtime.levels import cpu_library_file
from bitexport.runtime.processes import lock_across_forks
from bitexport.system.native_files import find_library_dir, library_name

_BINDING_VARIABLE = "LLAMA_CPP_LIB_PATH"
_MAPS = Path("/proc/self/maps")
_OURS_OR_THEIRS = re.compile(r"^lib(llama|ggml)([-.].*)?\.(so|dylib)(\.\d+)*$")

_bound: ModuleType | None = None
_binding = lock_across_forks()


def bind() -> ModuleType:
    """Import llama-cpp-python with our libraries; llama.cpp's log goes to :mod:`bitexport.runtime.log`.

    Returns:
        The module ``llama_cpp``. Later calls return the same module.

    Raises:
        NativeLibraryError: our library is missing or damaged, llama-cpp-python is missing, or another
            libllama or libggml is already loaded in this process.
    """
    global _bound
    with _binding:
        if _bound is None:
            directory = find_library_dir()
            refuse_foreign_libraries(directory)
            bound = _import_with(directory)
            log.capture(bound)
            _leave_output_alone()
            _bound = bound
    return _bound


def _leave_output_alone() -> None:
    """Keep llama-cpp-python from redirecting the process's output while it loads a model.

    It does so to silence llama.cpp, which :mod:`bitexport.runtime.log` has already done. It points file
    descriptors 1 and 2 of the whole process at /dev/null, for all threads, and two loads at once never undo
    that.
    """
    for name in ("llama_cpp.llama", "llama_cpp._internals", "llama_cpp.llama_chat_format"):
        vars(sys.modules[name])["suppress_stdout_stderr"] = _no_redirection


def _no_redirection(disable: bool = True) -> nullcontext[None]:  # noqa: ARG001  # called with disable=...
    return nullcontext()


def refuse_foreign_libraries(directory: Path) -> None:
    """Raise NativeLibraryError if a libllama or libggml from outside ``directory`` is already loaded."""
    foreign = _foreign_binding(directory) or _foreign_mapping(directory)
    if foreign is not None:
        raise NativeLibraryError(
            f"{foreign} is already loaded in this process, which cannot use two llama.cpp libraries; open "
            "the model with bitexport before importing llama_cpp, or use a separate process"
        )


def _foreign_binding(directory: Path) -> Path | None:
    module = sys.modules.get("llama_cpp.llama_cpp")
    if module is None:
        return None
    used = Path(module._base_path).resolve()
    return None if used == directory.resolve() else used / library_name("llama")


def _foreign_mapping(directory: Path) -> Path | None:
    if not _MAPS.exists():  # not Linux
        return None
    for line in _MAPS.read_text(errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6:
            continue
        mapped = Path(fields[5].removesuffix(" (deleted)"))
        if _OURS_OR_THEIRS.match(mapped.name) and not mapped.resolve().is_relative_to(directory.resolve()):
            return mapped
    return None


def _import_with(directory: Path) -> ModuleType:
    before = os.environ.get(_BINDING_VARIABLE)
    os.environ[_BINDING_VARIABLE] = str(directory)
    bindings = str(directory / "python")
    sys.path.insert(0, bindings)
    try:
        # libggml finds the one that is already loaded
        ctypes.CDLL(str(cpu_library_file()))
        return importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        raise NativeLibraryError(
            f"the Python package {error.name} is not installed; "
            + (
                f"{bindings} lacks llama-cpp-python's files: build the libraries again with `make native`"
                if error.name == "llama_cpp"
                else f"pip install {error.name}"
            )
        ) from error
    except (OSError, RuntimeError, FileNotFoundError, AttributeError) as error:
        raise NativeLibraryError(
            f"llama-cpp-python cannot load the libraries in {directory}: {error}; "
            "build them again with `make native`"
        ) from error
    finally:
        sys.path.remove(bindings)
        # a child process that uses another llama_cpp must not inherit the variable
        if before is None:
            del os.environ[_BINDING_VARIABLE]
        else:
            os.environ[_BINDING_VARIABLE] = before
