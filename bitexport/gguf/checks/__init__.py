"""Rejects files that libllama would crash on or run wrongly.

libllama reports an error for most bad files, but it asserts on some values, reads beyond the end of others,
and silently replaces a third kind. So a file must consist of what is known: an architecture of our libllama,
a tokenizer whose parts fit together, numbers of the right kind and size, and tensors with known names and
usable types. What these checks cannot foresee is left to :mod:`bitexport.runtime.trial`.
"""

from __future__ import annotations

from bitexport.gguf.checks.foreign import check_foreign, check_rotation, foreign_notes
from bitexport.gguf.checks.hyperparameters import check_architecture, check_hyperparameters
from bitexport.gguf.checks.tensors import check_tensors
from bitexport.gguf.checks.vocabulary import check_vocabulary
from bitexport.gguf.reader import GGUFFile

__all__ = ["check_file", "check_foreign", "check_rotation", "foreign_notes"]


def check_file(file: GGUFFile) -> None:
    """Check everything that a file's header says; missing numbers are left to libllama.

    Raises:
        GGUFError: a key or a tensor is invalid; names it, its value and what was expected.
    """
    check_architecture(file)
    check_hyperparameters(file)
    check_tensors(file)
    check_vocabulary(file)
