"""``bitexport eval``: how good a model is on held-out data, and how much of its teacher's quality it keeps.

Every side gives the same figures: a float teacher or a ternary student in PyTorch, or a GGUF file in C++.
"""

from __future__ import annotations

from bitexport.evaluation.driver import evaluate
from bitexport.evaluation.held_out import held_out_pairs, render_pairs
from bitexport.evaluation.items import PromptAnswer, read_pairs, write_pairs
from bitexport.evaluation.report import Column, EvaluationReport, Kept

__all__ = [
    "Column",
    "EvaluationReport",
    "Kept",
    "PromptAnswer",
    "evaluate",
    "held_out_pairs",
    "read_pairs",
    "render_pairs",
    "write_pairs",
]
