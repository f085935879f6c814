"""Finds llama.cpp's ``conversion`` package, and reads which architectures it knows without importing it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bitexport.errors import NativeLibraryError
from bitexport.system.native_files import find_conversion_dir

#: The name of the table in ``conversion/__init__.py``: architecture in config.json -> module of its class.
TABLE = "TEXT_MODEL_MAP"

#: llama.cpp's class for these writes ``bitnet``, a graph that computes SiLU, not their squared ReLU.
NEVER = ("BitNetForCausalLM", "BitnetForCausalLM")


def known_architectures() -> Mapping[str, str]:
    """llama.cpp's text architectures, as config.json names them, and the modules of their classes.

    Raises:
        NativeLibraryError: the package is missing or its form has changed.
    """
    return _read_table(find_conversion_dir())


def is_upstream(config: Mapping[str, Any]) -> bool:
    """Whether llama.cpp's converter knows a checkpoint's architecture and runs it right.

    Args:
        config: config.json.
    """
    try:
        table = known_architectures()
    except NativeLibraryError:
        return False
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        named = part.get("architectures")
        if isinstance(named, list) and named and isinstance(named[0], str) and named[0] in table:
            return named[0] not in NEVER
    return False


@functools.cache
def _read_table(folder: Path) -> Mapping[str, str]:
    path = folder / "conversion" / "__init__.py"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise NativeLibraryError(
            f"{path} cannot be read ({error}); build the native libraries again"
        ) from error
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == TABLE:
            assert node.value is not None
            return MappingProxyType(dict(ast.literal_eval(node.value)))
    raise NativeLibraryError(f"{path} has no {TABLE}; use the release in native/llama_cpp/llama_cpp.lock")
