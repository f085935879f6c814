"""Another program that measures tokens per second, for ``bitexport bench --against``.

It is any program with the options and the JSON of llama.cpp's ``llama-bench``: the user's command, such as
``path/llama-bench -m other.gguf -fa 1``, to which ``-p N -n 0`` (prefill) or ``-p 0 -n N`` (decode) and
``-t THREADS -r 1 -o json`` are added. It prints an array with an object for each test on stdout, of which
``n_prompt``, ``n_gen`` and ``avg_ts`` (tokens per second) are read, and if they are there ``n_depth``,
``n_threads``, ``model_type``, ``model_size`` and ``build_commit``.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitexport.bench.measure import BenchTest
from bitexport.errors import BitexportError, UsageError

#: Longer than a test of a large model on a slow machine.
_SECONDS = 3600

#: Of a program's last line, in a message.
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program says of one test.

    Attributes:
        tokens_per_second: its speed.
        model: what it ran; empty if it does not say.
        bytes: of that model's tensors; None if it does not say.
        build: its version; empty if it does not say.
    """

    tokens_per_second: float
    model: str
    bytes: int | None
    build: str


class Peer:
    """A program that measures.

    Args:
        command: its command line, as for a shell without one.

    Attributes:
        name: the program's name, for tables.
        command: the command line as given.
        answer: its last answer; None before the first.

    Raises:
        UsageError: the command cannot be parsed, or there is no such program.
    """

    def __init__(self, command: str) -> None:
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise UsageError(
                f"--against {command!r} is not a command line: {error}; correct the quotes"
            ) from error
        if not self._arguments:
            raise UsageError('--against is empty; give a command such as "path/llama-bench -m other.gguf"')
        program = self._arguments[0]
        if shutil.which(program) is None:
            raise UsageError(
                f"--against: there is no program {program} that can be executed; give its path, or correct it"
            )
        self.command = command
        self.name = Path(program).name
        self.answer: Answer | None = None

    def seconds(self, test: BenchTest, threads: int) -> float:
        """Let it run a test once, in a process of its own, after its own warm-up.

        Raises:
            BitexportError: it fails, or its output is not as expected; the message has its last line.
        """
        sizes = (
            ("-p", str(test.tokens), "-n", "0") if test.kind == "pp" else ("-p", "0", "-n", str(test.tokens))
        )
        arguments = [*self._arguments, *sizes, "-t", str(threads), "-r", "1", "-o", "json"]
        self.answer = self._find(self._run(arguments, test), test, threads)
        return test.tokens / self.answer.tokens_per_second

    def _run(self, arguments: list[str], test: BenchTest) -> str:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C goes to this process, which ends it
            )
        except OSError as error:
            raise BitexportError(f"{self.name} does not start: {error.strerror or error}") from error
        try:
            output, errors = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise BitexportError(f"{self.name} took more than {_SECONDS} s for {test.name}") from None
        finally:
            _end(process)
        if process.returncode != 0:
            raise self._error(test, f"{_ending(process.returncode)}", errors or output)
        text = output.decode(errors="replace")
        if not text.strip():
            raise self._error(test, "printed nothing on stdout", errors)
        return text

    def _find(self, text: str, test: BenchTest, threads: int) -> Answer:
        expected = (test.tokens, 0) if test.kind == "pp" else (0, test.tokens)
        try:
            document = json.loads(text)
        except ValueError:
            raise self._error(
                test, "did not print one JSON document, as `-o json` does", text.encode()
            ) from None
        rows = [row for row in document if isinstance(row, dict)] if isinstance(document, list) else []
        found = [
            row
            for row in rows
            if (row.get("n_prompt"), row.get("n_gen"), row.get("n_depth", 0)) == (*expected, 0)
        ]
        if len(found) != 1:
            names = ", ".join(f"n_prompt {row.get('n_prompt')}, n_gen {row.get('n_gen')}" for row in rows)
            raise BitexportError(
                f"{self.name} was asked for {test.name} and answered with {names or 'no test'}; expected one "
                f"object with n_prompt {expected[0]}, n_gen {expected[1]} and avg_ts: leave out of --against "
                "what sets the tests"
            )
        (row,) = found
        speed = row.get("avg_ts")
        if not isinstance(speed, (int, float)) or not math.isfinite(speed) or speed <= 0:
            raise BitexportError(
                f"{self.name} says avg_ts {speed!r} for {test.name}; expected tokens per second"
            )
        if row.get("n_threads", threads) != threads:
            raise BitexportError(
                f"{self.name} ran {test.name} with {row['n_threads']} threads instead of {threads}; leave "
                "out of --against what sets them"
            )
        size = row.get("model_size")
        return Answer(
            float(speed),
            _text(row, "model_type"),
            size if isinstance(size, int) else None,
            _text(row, "build_commit"),
        )

    def _error(self, test: BenchTest, what: str, output: bytes) -> BitexportError:
        lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
        last = f": {lines[-1][:_SHOWN]}" if lines else ""
        return BitexportError(
            f"{self.name} {what} in {test.name}{last}; try it alone: {self.command} -o json"
        )


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) and value.isprintable() else ""


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it started; nothing if it has ended."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
