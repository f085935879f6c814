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

#: Architectures of which tiny ternary models are converted in the tests and compared with llama.cpp's own
#: converter, as config.json names them, and what is special about them.
TESTED: Mapping[str, str] = MappingProxyType(
    {
        "ApertusForCausalLM": "",
        "DeepseekV2ForCausalLM": "MLA, experts",
        "FalconH1ForCausalLM": "attention beside Mamba-2",
        "Gemma3ForCausalLM": "sliding window",
        "Glm4ForCausalLM": "",
        "Glm4MoeForCausalLM": "experts",
        "HunYuanMoEV1ForCausalLM": "experts",
        "Mamba2ForCausalLM": "",
        "MambaForCausalLM": "",
        "MiniCPMForCausalLM": "BitCPM4; long RoPE",
        "MistralForCausalLM": "linear RoPE",
        "MixtralForCausalLM": "experts",
        "Olmo2ForCausalLM": "",
        "OlmoForCausalLM": "",
        "Phi3ForCausalLM": "fused q, k, v; long RoPE",
        "Qwen2MoeForCausalLM": "experts",
        "Qwen3ForCausalLM": "with YaRN",
        "Qwen3MoeForCausalLM": "experts",
        "Qwen3NextForCausalLM": "linear attention, experts",
        "Qwen3_5ForCausalLM": "linear attention",
        "SmolLM3ForCausalLM": "layers without RoPE",
    }
)


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

    Raises:
        NativeLibraryError: see :func:`known_architectures`.
    """
    table = known_architectures()
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
