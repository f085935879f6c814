"""Write llama.cpp's table of known pre-tokenizers as JSON, from its converter's source, unexecuted.

Usage: pre_tokenizers.py CONVERSION_BASE_PY OUT.json

llama.cpp recognises a tokenizer by the sha256 of the token ids that it gives a fixed text. The text and the
``hash -> name`` pairs live in one method; this reads them from its syntax tree, because importing that module
would pull torch and transformers into the build.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

METHOD = "get_vocab_base_pre"
CHECK_TEXT = "chktxt"
RESULT = "res"


def find_method(tree: ast.Module) -> ast.FunctionDef:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == METHOD:
            return node
    raise SystemExit(f"pre_tokenizers.py: no method {METHOD} found; llama.cpp moved its pre-tokenizer table")


def assigned_string(statement: ast.stmt, name: str) -> str | None:
    """The string literal that ``statement`` assigns to ``name``, if that is what it does."""
    if (
        isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id == name
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ):
        return statement.value.value
    return None


def read_table(method: ast.FunctionDef) -> tuple[str, dict[str, str]]:
    check_text: str | None = None
    hashes: dict[str, str] = {}
    for statement in method.body:
        check_text = assigned_string(statement, CHECK_TEXT) or check_text
        if not isinstance(statement, ast.If) or not isinstance(statement.test, ast.Compare):
            continue
        digest = statement.test.comparators[0]
        if not isinstance(digest, ast.Constant) or len(str(digest.value)) != 64:
            continue
        names = [name for inner in statement.body if (name := assigned_string(inner, RESULT))]
        if len(names) == 1:
            hashes[str(digest.value)] = names[0]
    if not check_text or len(hashes) < 50:
        raise SystemExit(f"pre_tokenizers.py: {METHOD} gave {len(hashes)} names; its form has changed")
    return check_text, hashes


def main() -> None:
    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    check_text, hashes = read_table(find_method(ast.parse(source.read_text(encoding="utf-8"))))
    table = {"check_text": check_text, "hashes": hashes}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
