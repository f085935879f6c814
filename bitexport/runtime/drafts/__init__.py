"""Drafts: tokens that probably come next, evaluated together in one pass. The text is the same without them.

``lookup.py`` finds them in the text itself, ``model.py`` asks a smaller model; ``pace.py`` decides how many
are worth a pass, ``verify.py`` keeps those that are right. ``opening.py`` checks and opens what an option
names; it is not imported here, because texts without drafts should start quickly.
"""

from bitexport.runtime.drafts.limits import (
    DEFAULT_DRAFT_TOKENS,
    LOOKUP,
    MAX_DRAFT_TOKENS,
    check_draft_tokens,
)
from bitexport.runtime.drafts.verify import DraftSource, DraftStatistics, Passes

__all__ = [
    "DEFAULT_DRAFT_TOKENS",
    "LOOKUP",
    "MAX_DRAFT_TOKENS",
    "DraftSource",
    "DraftStatistics",
    "Passes",
    "check_draft_tokens",
]
