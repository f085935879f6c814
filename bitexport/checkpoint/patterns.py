"""Regular expressions in a checkpoint's files, which Python matches without a limit on time."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

from bitexport.errors import CheckpointError

#: Lists have a pattern for each kind of layer, or for each layer.
MAX_PATTERNS = 2_000
MAX_LENGTH = 500

#: Repetitions without a limit in one pattern. The time to match a name grows with its length to this power.
MAX_REPETITIONS = 3

#: In how many ways all patterns together may match a name: each question mark, and each group of
#: alternatives, multiplies the time. A million take a twentieth of a second.
MAX_WAYS = 1 << 20

#: A longer name than any module has.
_NAME_LENGTH = 64

_UNLIMITED = re.compile(r"[*+]|\{\d*,\d*\}")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_OPTIONAL = re.compile(r"(?<!\()\?")


def check_patterns(what: str, patterns: Sequence[str]) -> None:
    """Check that patterns for modules' names can be matched at once.

    Args:
        what: the file and the key, for the message.

    Raises:
        CheckpointError: there are far more than a model has layers, or one could take hours.
    """
    if len(patterns) > MAX_PATTERNS:
        raise CheckpointError(
            f"{what} has {len(patterns)} entries; expected at most {MAX_PATTERNS}: merge some into one"
        )
    for pattern in patterns:
        if problem := _problem(pattern):
            raise CheckpointError(f"{what} has {pattern[:100]!r}, which {problem}: simplify it")
    slowest = max(patterns, key=_ways, default="")
    if sum(map(_ways, patterns)) > MAX_WAYS:
        raise CheckpointError(
            f"{what} has {slowest[:100]!r}, and all of its patterns match a name in more than {MAX_WAYS} "
            "ways, which may never end: use fewer question marks and alternatives"
        )


@functools.lru_cache(maxsize=MAX_PATTERNS)
def _problem(pattern: str) -> str:
    if len(pattern) > MAX_LENGTH:
        return f"has {len(pattern)} characters; expected at most {MAX_LENGTH}"
    if _REPEATED_GROUP.search(pattern) or len(_UNLIMITED.findall(pattern)) > MAX_REPETITIONS:
        return f"repeats a group, or has more than {MAX_REPETITIONS} of * and +, and may never end"
    return ""


@functools.lru_cache(maxsize=MAX_PATTERNS)
def _ways(pattern: str) -> int:
    """An upper bound of the ways in which a pattern without repeated groups can match a name."""
    repetitions = len(_UNLIMITED.findall(pattern))
    lengths = math.comb(_NAME_LENGTH + repetitions, repetitions)
    # between two closing brackets, at most one alternative is taken
    alternatives = math.prod(part.count("|") + 1 for part in pattern.split(")"))
    return int(lengths * alternatives * 2 ** len(_OPTIONAL.findall(pattern)))


@functools.lru_cache(maxsize=MAX_PATTERNS)
def compiled(pattern: str) -> re.Pattern[str]:
    """``re.compile``, which itself remembers only 512 patterns."""
    return re.compile(pattern)
