"""Binds llama-cpp-python to our native libraries.

:func:`api` is libllama's functions alone; :func:`bind` is all of llama-cpp-python, whose class ``Llama``
takes half a second to import with the packages that it needs.

Its Python files of our libraries' release lie beside them, so that structs agree; another llama-cpp-python
may be installed and is left alone. They load the libllama in their own folder, unless ``LLAMA_CPP_LIB_PATH``
names another one before they are imported. Two libllamas in one process would share symbols and crash, and a
stock one does not support I2_S: so if another one is already loaded, that is an error that names it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from bitexport.errors import NativeLibraryError
from bitexport.runtime import log
from bitexport.runtime.levels import cpu_library_file
from bitexport.runtime.processes import lock_across_forks
from bitexport.system.native_files import find_library_dir, library_name

_BINDING_VARIABLE = "LLAMA_CPP_LIB_PATH"
_MAPS = Path("/proc/self/maps")
_OURS_OR_THEIRS = re.compile(r"^lib(llama|ggml)([-.].*)?\.(so|dylib)(\.\d+)*$")

_api: ModuleType | None = None
_bound: ModuleType | None = None
_binding = lock_across_forks()


class _Postponed(ModuleType):
    """The package ``llama_cpp`` while only ``llama_cpp.llama_cpp`` is imported; the rest follows on use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # importlib's questions
            raise AttributeError(name)
        _complete(self)
        return getattr(self, name)


def api() -> ModuleType:
    """Load our libraries; llama.cpp's log goes to :mod:`bitexport.runtime.log`.

    Returns:
        The module ``llama_cpp.llama_cpp``, libllama's functions. Later calls return the same module.

    Raises:
        NativeLibraryError: our library is missing or damaged, llama-cpp-python is missing, or another
            libllama or libggml is already loaded in this process.
    """
    global _api
    with _binding:
        if _api is None:
            directory = find_library_dir()
            refuse_foreign_libraries(directory)
            found = _import_with(directory)
            log.capture(found)
            _api = found
    return _api


def bind() -> ModuleType:
    """Import all of llama-cpp-python with our libraries.

    Returns:
        The module ``llama_cpp``. Later calls return the same module.

    Raises:
        NativeLibraryError: as :func:`api`, or a package that llama-cpp-python needs is missing.
    """
    global _bound
    with _binding:
        if _bound is None:
            functions = api()
            package = sys.modules["llama_cpp"]
            if isinstance(package, _Postponed):
                try:
                    _complete(package)
                except ModuleNotFoundError as error:
                    raise _missing(error, find_library_dir() / "python") from error
            _leave_output_alone()
            log.capture(functions)  # llama-cpp-python captures it, too
            _bound = package
    return _bound


def _complete(package: _Postponed) -> None:
    """Import the rest of llama-cpp-python, which anyone who imports it now expects."""
    with _binding:
        if type(package) is not _Postponed:  # another thread did
            return
        assert package.__spec__ is not None
        loader = package.__spec__.loader
        assert loader is not None
        package.__class__ = ModuleType  # type: ignore[assignment]
        try:
            loader.exec_module(package)
        except BaseException:
            package.__class__ = _Postponed
            raise


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
    bindings = directory / "python"
    sys.path.insert(0, str(bindings))
    try:
        # libggml finds the one that is already loaded
        ctypes.CDLL(str(cpu_library_file()))
        _postpone()
        return importlib.import_module("llama_cpp.llama_cpp")
    except ModuleNotFoundError as error:
        _forget()
        raise _missing(error, bindings) from error
    except (OSError, RuntimeError, FileNotFoundError, AttributeError) as error:
        _forget()
        raise NativeLibraryError(
            f"llama-cpp-python cannot load the libraries in {directory}: {error}; "
            "build them again with `make native`"
        ) from error
    finally:
        sys.path.remove(str(bindings))
        # a child process that uses another llama_cpp must not inherit the variable
        if before is None:
            del os.environ[_BINDING_VARIABLE]
        else:
            os.environ[_BINDING_VARIABLE] = before


def _postpone() -> None:
    """Let ``llama_cpp`` be imported without what its ``__init__`` imports, unless it has been imported."""
    if "llama_cpp" in sys.modules:
        return
    spec = importlib.util.find_spec("llama_cpp")
    if spec is not None:
        package = _Postponed("llama_cpp")
        package.__spec__, package.__loader__ = spec, spec.loader
        package.__file__, package.__path__ = spec.origin, list(spec.submodule_search_locations or ())
        package.__package__ = "llama_cpp"
        sys.modules["llama_cpp"] = package


def _forget() -> None:
    """After a failed import, as Python itself does."""
    if isinstance(sys.modules.get("llama_cpp"), _Postponed):
        del sys.modules["llama_cpp"]


def _missing(error: ModuleNotFoundError, bindings: Path) -> NativeLibraryError:
    name = error.name or ""
    return NativeLibraryError(
        f"the Python package {name} is not installed; "
        + (
            f"{bindings} lacks llama-cpp-python's files: build the libraries again with `make native`"
            if name.startswith("llama_cpp")
            else f"pip install {name}"
        )
    )
