"""The picture in docs/architecture.md follows the imports."""

from __future__ import annotations

import runpy

from tests.support.repository import REPOSITORY

SCRIPT = runpy.run_path(str(REPOSITORY / "scripts" / "architecture_diagram.py"))
diagram, layers, without_implied = (SCRIPT[name] for name in ("diagram", "layers", "without_implied"))

PROJECT = """
[[tool.importlinter.contracts]]
type = "layers"
layers = ["cli", "bench | doctor", "gguf", "errors"]
"""


def test_layers_come_from_the_contract() -> None:
    assert layers(PROJECT) == [["cli"], ["bench", "doctor"], ["gguf"], ["errors"]]


def test_an_arrow_that_others_imply_is_left_out() -> None:
    edges = {"cli": {"bench", "gguf", "doctor"}, "bench": {"gguf"}, "doctor": set()}
    assert without_implied(edges) == [("bench", "gguf"), ("cli", "bench"), ("cli", "doctor")]


def test_the_last_layer_is_not_drawn() -> None:
    drawn = diagram(layers(PROJECT), {"bench": {"gguf", "errors"}, "gguf": {"errors"}})
    assert "    bench --> gguf\n" in drawn
    assert "errors" not in drawn
