"""Draw the packages and their imports into docs/architecture.md, from the code itself.

Usage: architecture_diagram.py [--check]

``--check`` writes nothing and fails where the page is out of date. The layers are those that
``[tool.importlinter]`` in pyproject.toml enforces. An arrow means "imports"; one that other arrows imply is
left out, and so are the modules that everything imports (errors, progress, ternary).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Set
from pathlib import Path

import grimp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- made by scripts/architecture_diagram.py: change the imports instead -->\n"
END = "<!-- end of what scripts/architecture_diagram.py makes -->\n"
PACKAGE = "bitexport"

#: The native half, which no import shows.
NATIVE = """\
    runtime -. ctypes .-> models
    models[graph: llama_cpp/models] --> ggml[buffer types: llama_cpp/ggml]
    ggml --> kernels[kernels: ternary, head, attention, peaks]
"""


def layers(project: str) -> list[list[str]]:
    """The layers that import-linter enforces, from top to bottom, in the text of a pyproject.toml."""
    contracts = tomllib.loads(project)["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["type"] == "layers"]
    return [[name.strip() for name in row.split("|")] for row in contract["layers"]]


def imports(graph: grimp.ImportGraph) -> dict[str, set[str]]:
    """For each package or module at the top of bitexport, those that it imports."""
    found: dict[str, set[str]] = {}
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            source, target = _top(importer), _top(imported)
            if source and target and source != target:
                found.setdefault(source, set()).add(target)
    return found


def _top(module: str) -> str:
    """``checkpoint`` of ``bitexport.checkpoint.packings.base``; empty for bitexport itself."""
    return module.split(".")[1] if "." in module else ""


def without_implied(edges: Mapping[str, Set[str]]) -> list[tuple[str, str]]:
    """The edges of an acyclic graph that no longer path implies (its transitive reduction), sorted."""
    kept = []
    for source, targets in edges.items():
        for target in targets:
            others = _reachable(edges, targets - {target})
            if target not in others:
                kept.append((source, target))
    return sorted(kept)


def _reachable(edges: Mapping[str, Set[str]], starts: Set[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(edges.get(node, ()))
    return found


def diagram(rows: list[list[str]], edges: Mapping[str, Set[str]]) -> str:
    """A Mermaid flowchart: a box for each package, the layers in order."""
    boxes = {name for row in rows[:-1] for name in row}  # the last layer is what everything imports
    shown = {name: targets & boxes for name, targets in edges.items() if name in boxes}
    lines = ["```mermaid", "flowchart TD"]
    for row in rows[:-1]:
        lines += [f"    {name}" for name in row]
    lines += [f"    {source} --> {target}" for source, target in without_implied(shown)]
    return "\n".join(lines) + f"\n{NATIVE}```\n"


def main() -> int:
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rows = layers((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = before + BEGIN + diagram(rows, imports(graph)) + END + after
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != page:
        print(
            f"{PAGE.relative_to(ROOT)} is out of date; run scripts/architecture_diagram.py", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
