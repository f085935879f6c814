"""Starts llama-server, waits until it takes requests, and stops it without losing those in progress."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from bitexport.errors import BitexportError, NativeLibraryError, UsageError, WorkerError
from bitexport.runtime import ggml
from bitexport.runtime.drafts.limits import DEFAULT_DRAFT_TOKENS
from bitexport.runtime.loading import damage
from bitexport.serve.address import url_of, why_not_bound
from bitexport.serve.command import arguments, environment
from bitexport.serve.limits import Limits
from bitexport.serve.plan import plan
from bitexport.serve.records import RequestRecord, parse, request_record

#: Lines of llama-server's log that are kept to explain a failure.
_KEPT_LINES = 50

#: Seconds for the process to end after the requests have ended.
_GRACE = 10

_REASON = re.compile(r"error loading model: (.*)")

_NO_LIMITS_GIVEN = Limits()

_logger = logging.getLogger("bitexport.native")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a server did.

    Attributes:
        requests: answered, those that were refused among them.
        tokens: generated.
        cut_off: requests that were still in progress when the time to stop was over.
        seconds: from ready to stopped.
    """

    requests: int
    tokens: int
    cut_off: int
    seconds: float


class Server:
    """llama-server with one GGUF file, in a process of its own. A context manager: it serves inside ``with``.

    The process ends with this one, also if this one is killed.

    Args:
        path: the GGUF file. It is checked first, like a file that :func:`bitexport.load` opens.
        host: the address to listen on. Without a key only an address of this machine.
        port: 0 for any free one; :attr:`url` has it.
        api_key: clients must send it as ``Authorization: Bearer KEY``; None for no key.
        slots: requests that compute at the same time. Others wait.
        ctx: the context of each slot in tokens, for prompt and answer together; 0 for the model's own, up to
            4096.
        threads: threads that compute; 0 for one per core.
        cache_mib: memory for the prompts of earlier conversations that lost their slot, in MiB.
        embeddings: refuse a file that is not an embedding model. One that is always serves embeddings.
        pooling: ``mean``, ``cls`` or ``last``: embed with this pooling instead of the file's.
        limits: see :class:`Limits`.
        workers, layers: see :func:`bitexport.load`.
        draft: ``"lookup"``, or the file of a smaller model with the same tokens: llama-server evaluates
            several tokens in one pass where they can be foreseen. None: one by one.
        draft_tokens: the most drafted tokens of a pass.
        on_request: called after each request, in a thread of its own; no more after it raised an exception.

    Raises:
        GGUFError, UnsupportedError, TokenizerError: the file cannot be served.
        UsageError: an option is out of range, the address is taken, or it is not safe without a key.
        NativeLibraryError: llama-server or a library is missing.
        WorkerError: a worker cannot be used. :meth:`wait` raises it when one is lost.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        api_key: str | None = None,
        slots: int = 4,
        ctx: int = 0,
        threads: int = 0,
        cache_mib: int = 512,
        embeddings: bool = False,
        pooling: str | None = None,
        limits: Limits = _NO_LIMITS_GIVEN,
        workers: str | Sequence[str] = (),
        layers: Sequence[int] = (),
        draft: str | os.PathLike[str] | None = None,
        draft_tokens: int = DEFAULT_DRAFT_TOKENS,
        on_request: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self.plan = plan(
            path,
            host=host,
            port=port,
            api_key=api_key,
            slots=slots,
            ctx=ctx,
            threads=threads,
            cache_mib=cache_mib,
            embeddings=embeddings,
            pooling=pooling,
            limits=limits,
            workers=workers,
            layers=layers,
            draft=draft,
            draft_tokens=draft_tokens,
        )
        self.tier = ggml.cpu_tier()
        self.port = port
        self._on_request = on_request
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []
        self._log: deque[str] = deque(maxlen=_KEPT_LINES)
        self._ready = threading.Event()  # also set when the process has ended
        self._ready_at = 0.0
        self._requests = self._tokens = self._cut_off = 0
        self._worker_lost: str | None = None

    @property
    def url(self) -> str:
        """Where the server is reached, such as ``http://127.0.0.1:8080``; the API is at ``/v1``."""
        return url_of(self.plan.host, self.port)

    @property
    def pid(self) -> int:
        """The number of llama-server's process."""
        return self._running().pid

    def start(self) -> None:
        """Start the process and wait until it has loaded the model and takes requests.

        Raises:
            UsageError: the address is taken.
            GGUFError: the model cannot be loaded.
            NativeLibraryError: the process ended for another reason.
        """
        if self._process is not None:
            raise UsageError("this server was started before; make a new one")
        self._process = subprocess.Popen(
            arguments(self.plan),
            env=environment(self.plan),
            stdin=subprocess.PIPE,  # its end tells the process to stop
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in a terminal is for us, and we pass it on
        )
        for stream, read in (
            (self._process.stdout, self._read_records),
            (self._process.stderr, self._read_log),
        ):
            reader = threading.Thread(target=read, args=(stream,), daemon=True)
            reader.start()
            self._readers.append(reader)
        try:
            self._ready.wait()
        except BaseException:
            self.kill()
            raise
        if not self._ready_at:
            raise self._failure(self._end())

    def wait(self) -> None:
        """Block until the server ends, which it does not do on its own.

        Raises:
            NativeLibraryError: it crashed.
            WorkerError: a worker was lost, without which the model cannot be computed.
        """
        self._running().wait()
        raise self._failure(self._end())

    def stop(self) -> Summary:
        """Refuse new requests, wait for those in progress as long as the limits say, and end the process."""
        process = self._running()
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(self.plan.limits.stop_seconds + _GRACE)
        except BaseException as error:
            self.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        self._end()
        return Summary(
            requests=self._requests,
            tokens=self._tokens,
            cut_off=self._cut_off,
            seconds=time.monotonic() - self._ready_at,
        )

    def kill(self) -> None:
        """End the process at once."""
        self._running().kill()
        self._end()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running().poll() is None:
            self.stop()
        else:
            self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise UsageError("the server has not been started; call start(), or use it in a with statement")
        return self._process

    def _end(self) -> int:
        """Wait for the process and the readers of its output; returns the exit code."""
        process = self._running()
        code = process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        return code

    def _read_records(self, stream: IO[str]) -> None:
        for line in stream:
            record = parse(line)
            if record is not None:
                self._take(record)
        self._ready.set()

    def _take(self, record: dict[str, Any]) -> None:
        if record["event"] == "ready":
            self.port = record["port"]
            self._ready_at = time.monotonic()
            self._ready.set()
        elif record["event"] == "worker_lost":
            self._worker_lost = record["message"]
        elif record["event"] == "stopped":
            self._cut_off = record["cut_off"]
        elif record["event"] == "request":
            request = request_record(record)
            self._requests += 1
            self._tokens += request.tokens or 0
            if self._on_request is not None:
                self._tell(request)

    def _tell(self, request: RequestRecord) -> None:
        """Call ``on_request``. If it fails, records are still read: the server would wait for us."""
        assert self._on_request is not None
        try:
            self._on_request(request)
        except Exception:
            self._on_request = None
            _logger.exception("on_request failed, and is not called for later requests")

    def _read_log(self, stream: IO[str]) -> None:
        for line in stream:
            if line.strip():
                self._log.append(line.strip())
                _logger.debug("%s", line.strip())

    def _failure(self, code: int) -> BitexportError:
        """The error for a process that ended on its own."""
        if self._worker_lost is not None:
            return WorkerError(self._worker_lost)
        lines = list(self._log)
        if any("couldn't bind" in line for line in lines):
            return UsageError(why_not_bound(self.plan.host, self.plan.port))
        for line in lines:
            if found := _REASON.search(line):
                return damage(self.plan.file, found[1])
        how = f"ended with signal {-code}" if code < 0 else f"ended with status {code}"
        said = f": {lines[-1]}" if lines else ""
        return NativeLibraryError(
            f"llama-server {how}{said}; if memory is short, use fewer --slots or a smaller --ctx"
        )


def serve(
    path: str | os.PathLike[str],
    *,
    on_ready: Callable[[Server], None] | None = None,
    **options: Any,
) -> Summary:
    """Serve a file until the process is interrupted: the function behind ``bitexport serve``.

    Args:
        path: the GGUF file.
        on_ready: called once the server takes requests.
        options: those of :class:`Server`.

    Returns:
        What it did, after a ``KeyboardInterrupt`` (which is not raised again); the requests in progress were
        finished first, as far as the limits allow. A second interrupt ends the process at once.

    Raises:
        GGUFError, UsageError, NativeLibraryError: as for :class:`Server`; or the server crashed.
    """
    server = Server(path, **options)
    server.start()
    try:
        if on_ready is not None:
            on_ready(server)
        server.wait()
    except KeyboardInterrupt:
        return server.stop()
    except BaseException:
        server.kill()
        raise
    raise AssertionError("a server ends only with an exception")
