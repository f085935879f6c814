"""What the server reports about itself: JSON lines from its standard output."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One HTTP request, after its end.

    Attributes:
        method, path: as sent.
        client: the client's address.
        status: the HTTP status of the answer.
        seconds: from the request's arrival to the end of the answer.
        complete: False if the client left before it had the whole answer.
        prompt_tokens: in the prompt; None if nothing was generated.
        cached_tokens: those of the prompt that an earlier request left in the cache.
        tokens: generated.
    """

    method: str
    path: str
    client: str
    status: int
    seconds: float
    complete: bool
    prompt_tokens: int | None
    cached_tokens: int | None
    tokens: int | None


def parse(line: str) -> dict[str, Any] | None:
    """The JSON object of a line; None for a line that is none of our records."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def request_record(fields: dict[str, Any]) -> RequestRecord:
    """The record of a request from its JSON object."""
    return RequestRecord(
        method=fields["method"],
        path=fields["path"],
        client=fields["client"],
        status=fields["status"],
        seconds=fields["milliseconds"] / 1000,
        complete=fields["complete"],
        prompt_tokens=fields.get("prompt_tokens"),
        cached_tokens=fields.get("cached_tokens"),
        tokens=fields.get("tokens"),
    )
