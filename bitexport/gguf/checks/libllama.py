"""What our libllama knows: its architectures, and what it does with each tensor."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from bitexport.errors import NativeLibraryError
from bitexport.system.native_files import find_library_dir

_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_FILE = "architectures.json"


@dataclass(frozen=True, slots=True)
class Known:
    """The tables of llama-arch.cpp, which our build writes next to the libraries.

    Attributes:
        architectures: the names that ``general.architecture`` may have.
        operations: what is done with a tensor, such as ``mul_mat``, by its name without ``.weight``, and with
            ``%d`` for the number of a layer.
    """

    architectures: frozenset[str]
    operations: Mapping[str, str]

    def operation(self, tensor: str) -> str | None:
        """What libllama does with a tensor; None if it knows no such name."""
        name = _LAYER.sub("%d", tensor)
        if name in self.operations:
            return self.operations[name]
        name, _, suffix = name.rpartition(".")
        operation = self.operations.get(name)
        if operation is not None and suffix == "bias":
            return "add"
        return operation


def known() -> Known:
    """The tables of our libllama.

    Raises:
        NativeLibraryError: our libraries are missing, or older than this package.
    """
    return _read(str(find_library_dir()))


@functools.cache
def _read(folder: str) -> Known:
    path = Path(folder) / _FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return Known(frozenset(table["architectures"]), MappingProxyType(dict(table["tensors"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NativeLibraryError(
            f"{path} cannot be read ({error}); build the native libraries again with `make native`"
        ) from error
