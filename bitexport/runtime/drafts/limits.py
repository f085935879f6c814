"""What the options about drafts may be."""

from __future__ import annotations

from bitexport.errors import UsageError

#: The name of drafts from the text itself.
LOOKUP = "lookup"

#: The most tokens that are drafted for a pass. With the one before them they are as many as our attention
#: takes one by one (``most_decoded`` in native/llama_cpp/ggml/attention.cpp): only then a pass computes, to
#: the last bit, what single tokens compute.
MAX_DRAFT_TOKENS = 31

#: The most tokens drafted for a pass, unless the user says otherwise.
DEFAULT_DRAFT_TOKENS = 15


def check_draft_tokens(count: int) -> None:
    """Check the most drafted tokens of a pass.

    Raises:
        UsageError: the number is out of range.
    """
    if not 1 <= count <= MAX_DRAFT_TOKENS:
        raise UsageError(f"{count} draft tokens per pass; expected 1 to {MAX_DRAFT_TOKENS}")
