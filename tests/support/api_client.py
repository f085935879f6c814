"""A client of a served model, with the standard library only."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, with its JSON if it is JSON."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an error in OpenAI's form."""
        return str(self.json["error"]["message"])


class Client:
    """Sends requests to a port of this machine, each on a connection of its own."""

    def __init__(self, port: int, *, key: str | None = None, timeout: float = 60) -> None:
        self.port = port
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def open(
        self, path: str, body: Any = None, headers: Mapping[str, str] = {}, method: str | None = None
    ) -> http.client.HTTPConnection:
        """A connection with the request sent; ``body`` is encoded as JSON unless it is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self._timeout)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        method = method or ("GET" if data is None else "POST")
        connection.request(method, path, data, {**self._headers, **headers})
        return connection

    def ask(
        self, path: str, body: Any = None, headers: Mapping[str, str] = {}, method: str | None = None
    ) -> Answer:
        connection = self.open(path, body, headers, method)
        try:
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """The JSON objects of a streamed answer; fails if it ends without ``[DONE]``."""
        connection = self.open(path, {**body, "stream": True})
        try:
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert answer.getheader("Content-Type") == "text/event-stream"
            for line in answer:
                if not line.startswith(b"data: "):
                    assert line.strip() in (b"", b":"), line
                elif line.strip() == b"data: [DONE]":
                    return
                else:
                    yield json.loads(line[len(b"data: ") :])
            raise AssertionError("the stream ended without [DONE]")
        finally:
            connection.close()

    def complete(self, prompt: str, count: int = 8, **fields: Any) -> dict[str, Any]:
        """A greedy completion."""
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, **fields}
        answer = self.ask("/v1/completions", body)
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json
        return found
