"""Rows of a dataset, streamed through ``datasets``; a connection that drops is opened again."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

from bitexport.errors import BitexportWarning

# Rows that are read together, and between two places at which a new connection can continue.
_ROWS_AT_ONCE = 500
# Seconds before each new attempt; after the last one the error is raised. Rows that arrive begin it again.
RETRY_AFTER = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 60.0, 60.0)
# Packages whose errors come from the network.
_TRANSPORTS = ("aiohttp", "httpcore", "httpx", "requests", "urllib3")


def stream_rows(**dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of ``datasets.load_dataset(**dataset)``, each once and in order.

    Raises:
        Exception: what ``datasets`` and its readers raise; of the network, only what several attempts in a
            row met without one new row.
    """
    import datasets

    stream = datasets.load_dataset(
        **dataset, streaming=True
    )  # who cannot be reached at all is not tried again
    state: Any = None  # of the stream, after the rows that were read
    failures = 0
    while True:
        try:
            if stream is None:
                stream = datasets.load_dataset(**dataset, streaming=True)
                if state is not None:
                    stream.load_state_dict(state)
            for batch in stream.iter(batch_size=_ROWS_AT_ONCE):
                state = stream.state_dict()
                failures = 0
                names = [*batch]
                for values in zip(*batch.values(), strict=True):
                    yield dict(zip(names, values, strict=True))
            return
        except Exception as error:
            if not is_of_network(error) or failures == len(RETRY_AFTER):
                raise
            seconds = RETRY_AFTER[failures]
            text = (
                f"dataset {dataset['path']}: {type(error).__name__}: {error}; trying again in {seconds:g} s"
            )
            warnings.warn(text, BitexportWarning, stacklevel=2)
            time.sleep(seconds)
            failures += 1
            stream = None


def is_of_network(error: BaseException) -> bool:
    """Whether another attempt may succeed: a lost connection or a timeout, not an answer that says no."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if any(kind.__module__.partition(".")[0] in _TRANSPORTS for kind in type(error).__mro__):
        return True
    return error.__cause__ is not None and is_of_network(error.__cause__)
