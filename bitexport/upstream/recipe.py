"""A recipe: what a GGUF file consists of, as one of llama.cpp's classes says. Written by :mod:`.extract`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.gguf.writer import RawValue

#: The files of a recipe, and the one that says why there is none.
DESCRIPTION, ARRAYS, METADATA = "recipe.json", "arrays.npz", "metadata.bin"
ERROR = "error.json"

#: The number of a layer in a tensor's name.
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")

#: The file with what the program that writes a recipe is told besides the checkpoint's folder: the
#: configuration, which ``--master`` changes, and the folder of the adapter to merge.
GIVEN = "given.json"


@dataclass(frozen=True)
class Rows:
    """Rows of the checkpoint's tensors, in the order in which they are written.

    Attributes:
        sources: the names of the tensors.
        runs: int64 ``[n, 3]``: the number of a source, the first row and the number of rows. Rows are those
            of the tensor with all its dimensions but the last one flattened.
        columns: int64 ``[columns]``: the column of the tensors that each column is; None if it is the same.
    """

    sources: tuple[str, ...]
    runs: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64] | None = None

    @property
    def whole(self) -> bool:
        """Whether they are all the rows of one tensor as they are, if there are as many rows as it has."""
        return (
            len(self.sources) == 1 and len(self.runs) == 1 and self.runs[0, 1] == 0 and self.columns is None
        )

    def table(self) -> npt.NDArray[np.int64]:
        """The source and the row of every row that is written: int64 ``[rows, 2]``."""
        sources, firsts, counts = self.runs.T
        begins = np.cumsum(counts) - counts
        rows = np.arange(counts.sum()) + np.repeat(firsts - begins, counts)
        return np.stack([np.repeat(sources, counts), rows], axis=1)


def as_runs(table: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The inverse of :meth:`Rows.table`."""
    steps = np.diff(table, axis=0)
    starts = np.flatnonzero(np.r_[True, (steps[:, 0] != 0) | (steps[:, 1] != 1)])
    return np.column_stack([table[starts], np.diff(np.r_[starts, len(table)])])


@dataclass(frozen=True)
class RecipeTensor:
    """One tensor of the file.

    Attributes:
        name: its name in the file.
        shape: its dimensions, outermost first.
        matrix: whether llama.cpp stores it as the type that the user chooses, and not always as float32.
        sources: the checkpoint's tensors that it depends on.
        rows: the rows that it consists of; None if it has values of its own.
        values: float32, of ``shape``; None if it consists of rows.
    """

    name: str
    shape: tuple[int, ...]
    matrix: bool
    sources: tuple[str, ...]
    rows: Rows | None = None
    values: npt.NDArray[np.float32] | None = None

    @property
    def linear(self) -> bool:
        """Whether it can be the weight of linear layers: a matrix in a block."""
        return self.matrix and self.name.startswith("blk.") and self.name.endswith(".weight")


@dataclass(frozen=True)
class Recipe:
    """What a file consists of.

    Attributes:
        architecture: the GGUF architecture.
        class_name: llama.cpp's class.
        metadata: all other keys, as the class writes them.
        strings: those of them that are strings.
        tokens: how many ids the vocabulary has; ``padded`` of them have no text.
        unknown_pre: whether the class did not recognise the pre-tokenizer.
        no_vocabulary: why the class could not convert the tokenizer; None if it did.
        blocks: the number of the model's blocks.
        filtered: the checkpoint's tensors that the class skips by their names, such as a vision part's.
        tensors: in the order of the file.
        left_out: the checkpoint's other tensors that nothing in the file depends on.
        notes: the warnings of the class.
    """

    architecture: str
    class_name: str
    metadata: Mapping[str, RawValue]
    strings: Mapping[str, str]
    tokens: int
    padded: int
    unknown_pre: bool
    no_vocabulary: str | None
    blocks: int
    filtered: Sequence[str]
    tensors: Sequence[RecipeTensor]
    left_out: Sequence[str]
    notes: Sequence[str]


def load_recipe(folder: Path) -> Recipe:
    """Read the files of a recipe."""
    described: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    data = (folder / METADATA).read_bytes()
    metadata = {key: RawValue(data[begin:end]) for key, begin, end in described["metadata"]}
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        tensors = [_tensor(entry, arrays, str(number)) for number, entry in enumerate(described["tensors"])]
    return Recipe(
        architecture=described["architecture"],
        class_name=described["class_name"],
        metadata=metadata,
        strings=described["strings"],
        tokens=described["tokens"],
        padded=described["padded"],
        unknown_pre=described["unknown_pre"],
        no_vocabulary=described["no_vocabulary"],
        blocks=described["blocks"],
        filtered=described["filtered"],
        tensors=tensors,
        left_out=described["left_out"],
        notes=described["notes"],
    )


def _tensor(entry: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], number: str) -> RecipeTensor:
    sources = tuple(entry["sources"])
    common = (entry["name"], tuple(entry["shape"]), entry["matrix"], sources)
    if f"{number}.values" in arrays:
        return RecipeTensor(*common, values=arrays[f"{number}.values"])
    columns = arrays[f"{number}.columns"]
    same = np.array_equal(columns, np.arange(len(columns)))
    return RecipeTensor(*common, rows=Rows(sources, arrays[f"{number}.runs"], None if same else columns))
