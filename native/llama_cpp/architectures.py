"""Write the architectures that our libllama knows, and what it does with each tensor, as JSON.

Usage: architectures.py LLAMA_ARCH_CPP OUT.json

Read from the tables of llama-arch.cpp, with our patches: the names of the architectures, and for each name of
a tensor (with ``%d`` for a layer) the operation that uses it, such as ``mul_mat``; ``none`` if it is ignored.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ARCHITECTURE = re.compile(r'\{\s*LLM_ARCH_\w+,\s*"([^"]+)"\s*\}')
NAME = re.compile(r'\{\s*(LLM_TENSOR_\w+),\s*"([^"]+)"\s*\}')
OPERATION = re.compile(r"\{\s*(LLM_TENSOR_\w+),\s*\{\s*LLM_TENSOR_LAYER_\w+,\s*GGML_OP_(\w+)\s*\}\s*\}")

#: A placeholder in llama.cpp's table, not an architecture.
UNKNOWN = "(unknown)"


def read_tables(source: str) -> tuple[list[str], dict[str, str]]:
    architectures = sorted(set(ARCHITECTURE.findall(source)) - {UNKNOWN})
    operations = dict(OPERATION.findall(source))
    tensors = {name: operations[key].lower() for key, name in NAME.findall(source) if key in operations}
    if len(architectures) < 100 or len(tensors) < 200:
        raise SystemExit(
            f"architectures.py: found {len(architectures)} architectures and {len(tensors)} tensors; the "
            "form of llama-arch.cpp has changed"
        )
    return architectures, tensors


def main() -> None:
    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    architectures, tensors = read_tables(source.read_text(encoding="utf-8"))
    output.parent.mkdir(parents=True, exist_ok=True)
    table = {"architectures": architectures, "tensors": tensors}
    output.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
