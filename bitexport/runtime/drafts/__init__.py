"""Drafts: tokens that probably come next, evaluated together in one pass. The text is the same without them.

``lookup.py`` finds them in the text itself, ``model.py`` asks a smaller model; ``pace.py`` decides how many
are worth a pass, ``verify.py`` keeps those that are right.
"""

from bitexport.runtime.drafts.opening import DEFAULT_DRAFT_TOKENS, LOOKUP, check_drafts, open_drafts
from bitexport.runtime.drafts.pace import MAX_DRAFT_TOKENS
from bitexport.runtime.drafts.verify import DraftSource, DraftStatistics, Passes

__all__ = [
    "DEFAULT_DRAFT_TOKENS",
    "LOOKUP",
    "MAX_DRAFT_TOKENS",
    "DraftSource",
    "DraftStatistics",
    "Passes",
    "check_drafts",
    "open_drafts",
]
