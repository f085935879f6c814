"""Models that are split into several GGUF files, as llama-gguf-split and the ``gguf`` package write them.

The parts are named ``NAME-00001-of-00003.gguf``. The first has the model's metadata. Each has ``split.no``,
its number from 0; ``split.count``, how many parts there are; and ``split.tensors.count``, the tensors in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from bitexport.errors import GGUFError

NUMBER_KEY = "split.no"
COUNT_KEY = "split.count"
TENSORS_KEY = "split.tensors.count"
KEYS = (NUMBER_KEY, COUNT_KEY, TENSORS_KEY)

#: split.count is a uint16.
MAX_PARTS = 2**16 - 1
MAX_NAMED = 3


def suffix(number: int, count: int) -> str:
    """How the name of part ``number``, from 1, ends."""
    return f"-{number:05d}-of-{count:05d}.gguf"


def part_paths(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """The files of a model, given its first; one file if the model is not split.

    Args:
        path: the file that the user gave.
        metadata: its metadata.

    Raises:
        GGUFError: it is another part, the names of the others do not follow from its name, or one is missing.
    """
    count = metadata.get(COUNT_KEY, 1)
    if count in (0, 1):
        return [path]
    number = metadata.get(NUMBER_KEY)
    if not (_is_number(count) and _is_number(number) and 0 <= number < count <= MAX_PARTS):
        raise GGUFError(
            f"{path.name}: {NUMBER_KEY} is {number!r} and {COUNT_KEY} is {count!r}; expected a part's number "
            "from 0 and how many there are: the file is damaged, download it again"
        )
    if number != 0:
        own = suffix(number + 1, count)
        first = path.name.removesuffix(own) + suffix(1, count) if path.name.endswith(own) else "the first one"
        raise GGUFError(
            f"{path.name} is part {number + 1} of {count} of a model; give the first part: {first}"
        )
    if not path.name.endswith(suffix(1, count)):
        raise GGUFError(
            f"{path.name} is the first of {count} parts of a model, and the others are found by its name; "
            f"expected one that ends in {suffix(1, count)}: rename it as it was"
        )
    prefix = path.name.removesuffix(suffix(1, count))
    parts = [path, *(path.with_name(prefix + suffix(other, count)) for other in range(2, count + 1))]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        shown = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        raise GGUFError(
            f"{path.name} is the first of {count} parts of a model, and {len(missing)} of them are missing: "
            f"{shown}; put all parts into {path.parent}"
        )
    return parts


def check_part(path: Path, metadata: Mapping[str, Any], number: int, count: int) -> None:
    """Check that a file is part ``number``, from 1, of a model of ``count`` parts.

    Raises:
        GGUFError: it says something else.
    """
    found, of = metadata.get(NUMBER_KEY), metadata.get(COUNT_KEY)
    if _is_number(found) and (found + 1, of) == (number, count):
        return
    says = f"that it is part {found + 1} of {of}" if _is_number(found) else f"nothing about it ({NUMBER_KEY})"
    raise GGUFError(
        f"{path.name} has the name of part {number} of {count}, but says {says}: parts were swapped or "
        "replaced; download it again"
    )


def check_tensors(path: Path, metadata: Mapping[str, Any], names: Sequence[str]) -> None:
    """Check that the parts together have the tensors that the first one announces, each once.

    Raises:
        GGUFError: a tensor appears twice, or their number is different.
    """
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise GGUFError(
            f"{path.name}: tensor '{name}' appears in {times} parts, so one of them belongs to another "
            "model; download all parts again"
        )
    expected = metadata.get(TENSORS_KEY, len(names))
    if expected != len(names):
        raise GGUFError(
            f"{path.name} and the other parts have {len(names)} tensors; expected {expected} "
            f"({TENSORS_KEY}): a part belongs to another model, download all parts again"
        )


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
