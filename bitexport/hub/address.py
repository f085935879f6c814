"""The hub's address, and texts with addresses, without what must not be shown."""

from __future__ import annotations

import re

#: A user and a password, and the query, in which downloads have signatures.
_USER = re.compile(r"(?<=://)[^\s/@'\"]*@")
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]*")


def hub_url() -> str:
    """The hub's address, which ends up in files and messages; HF_ENDPOINT may have a password."""
    from huggingface_hub import constants

    return without_secrets(constants.ENDPOINT)


def without_secrets(text: str) -> str:
    """A text whose addresses have no user, no password and no query."""
    return _QUERY.sub(r"\1", _USER.sub("", text))
