"""What one request, and all of them together, may cost."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bitexport.errors import UsageError

#: The smallest values that make sense; everything else is 0 or more.
_LEAST = {"body_bytes": 1024, "socket_seconds": 1, "texts": 1}
_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a server; 0 means no limit of its own where that is said.

    Attributes:
        prompt_tokens: of each prompt; 0 for as many as the context holds.
        max_tokens: generated for each request, also for one that asks for more; 0 for as many as the context
            holds.
        texts: to embed in one request. Several prompts in one request count as several requests.
        body_bytes: of a request's body.
        seconds: from a request's arrival to its last token; 0 for no limit. A request that is late ends with
            what it has, and ``finish_reason`` is ``"length"``.
        socket_seconds: for a client to send or to take the next bytes.
        queue: requests that wait while all slots compute; one more is answered with status 429.
        stop_seconds: given to the requests in progress when the server is stopped.
    """

    prompt_tokens: int = 0
    max_tokens: int = 0
    texts: int = 256
    body_bytes: int = 8 * 1024 * 1024
    seconds: int = 600
    socket_seconds: int = 30
    queue: int = 64
    stop_seconds: int = 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name, 0)
            if not least <= value <= _MOST:
                raise UsageError(
                    f"the limit {field.name.replace('_', ' ')} is {value}; expected {least} to {_MOST}"
                )
