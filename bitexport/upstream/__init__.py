"""llama.cpp's own converters as families made at run time.

The pinned llama.cpp brings a package ``conversion`` with one class for each architecture. Such a class says
what the tensors are called in a GGUF file, in which order their rows are, and what the metadata is. It is run
in a process of its own (:mod:`.extract`), on the checkpoint's config.json and tokenizer and on *symbolic*
tensors, and the result is a :class:`.recipe.Recipe`: for every tensor of the file, the rows of the
checkpoint's tensors that it consists of, or its values where the class computes them. No large tensor is read
for it. :mod:`bitexport.convert.from_upstream` then encodes the rows as for the families written by hand.
"""

from __future__ import annotations

from bitexport.upstream.package import TESTED, is_upstream, known_architectures
from bitexport.upstream.recipe import Recipe, RecipeTensor, Rows
from bitexport.upstream.run import read_recipe

__all__ = ["TESTED", "Recipe", "RecipeTensor", "Rows", "is_upstream", "known_architectures", "read_recipe"]
