"""Put `bitexport serve` under load: many clients, some of them slow or gone, and restarts in between.

Usage: serve_load.py FILE.gguf [--clients 32] [--seconds 600] [--slots 4] [--restart SECONDS] [--out OUT.json]

Every answer is compared with the one that a client alone got before. Printed are the answers that were lost
(no answer, or a stream that ended early) and wrong, which must be 0; the server's memory over time; and the
tokens per second that 1, 4 and 16 clients get together. A server that is restarted refuses requests for a
moment; the clients then try again, as behind a load balancer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitexport.serve import Limits, Server

BEGINNINGS = (
    "def add(left, right):\n",
    "for index in range(10):\n",
    "import os\n",
    "class Stack:\n    def push(self",
    "# read the file line by line\n",
    "if __name__ == ",
    "try:\n    value = int(",
    "return [x for x in ",
)
TOKENS = 48
REQUEST = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}

#: Two tokens whose log-probabilities differ by less may change places by rounding.
TIE = 0.25

Counts = Counter[str]


@dataclass(frozen=True)
class Expected:
    """What a client alone got: the text, its tokens, and how much more likely each was than the second one.

    Where two tokens are almost equally likely, either is right: what else is in a batch, and what is in
    the cache, decides how sums are rounded.
    """

    text: str
    tokens: list[str]
    gaps: list[float]  # in log-probability


class GoneError(Exception):
    """The server cannot be reached, or is stopping: try again."""


def post(port: int, body: Mapping[str, Any]) -> http.client.HTTPResponse:
    """Send a completion request; the status is checked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    except OSError as error:  # not sent, so not lost
        raise GoneError from error
    answer = connection.getresponse()
    if answer.status in (429, 503):
        raise GoneError
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}: {answer.read()[:200]!r}")
    return answer


def whole(port: int, prompt: str, choice: random.Random) -> str:
    """The text of an answer in one piece, with the cache or without."""
    body = {**REQUEST, "prompt": prompt, "cache_prompt": choice.random() < 0.5}
    text: str = json.loads(post(port, body).read())["choices"][0]["text"]
    return text


def measured(port: int, prompt: str) -> Expected:
    """The answer to a client alone."""
    body = {**REQUEST, "prompt": prompt, "cache_prompt": False, "logprobs": 2}
    found = json.loads(post(port, body).read())["choices"][0]
    likely = [[top["logprob"] for top in entry["top_logprobs"]] for entry in found["logprobs"]["content"]]
    tokens = [entry["token"] for entry in found["logprobs"]["content"]]
    return Expected(found["text"], tokens, [first - second for first, second in likely])


def streamed(port: int, prompt: str, choice: random.Random, pause: float = 0.0) -> str:
    """The text of a streamed answer, read with a pause after each event."""
    text = ""
    for line in post(port, {**REQUEST, "prompt": prompt, "stream": True}):
        if line.startswith(b"data: [DONE]"):
            return text
        if line.startswith(b"data: "):
            text += json.loads(line[6:])["choices"][0]["text"]
            time.sleep(pause * choice.random())
    raise RuntimeError("the stream ended without [DONE]")


def slow(port: int, prompt: str, choice: random.Random) -> str:
    """The text of a streamed answer that the client takes its time to read."""
    return streamed(port, prompt, choice, pause=0.1)


def leaving(port: int, prompt: str, choice: random.Random) -> None:
    """Close the connection in the middle of a stream."""
    answer = post(port, {**REQUEST, "prompt": prompt, "stream": True})
    for _ in range(choice.randrange(8)):
        answer.readline()
    answer.close()


def malformed(port: int, _prompt: str, choice: random.Random) -> None:
    """Send what is not a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v1/completions", choice.choice(["{", "[]", '{"prompt": {}}', ""]))
        status = connection.getresponse().status
    except OSError as error:
        raise GoneError from error
    if status not in (400, 500, 503, 429):
        raise RuntimeError(f"nonsense was answered with status {status}")


#: What a client does, and how often.
ACTIONS: tuple[tuple[Callable[[int, str, random.Random], str | None], int], ...] = (
    (whole, 4),
    (streamed, 4),
    (slow, 1),
    (leaving, 1),
    (malformed, 1),
)


def judge(text: str | None, expected: Expected) -> str | None:
    """``wrong``, ``tie`` if the first other token was almost as likely, or None."""
    if text is None or text == expected.text:
        return None
    before = ""
    for token, gap in zip(expected.tokens, expected.gaps, strict=True):
        before += token
        if not text.startswith(before):
            return "tie" if gap < TIE else "wrong"
    return "wrong"


def client(number: int, port: int, expected: Mapping[str, Expected], end: float, counts: Counts) -> None:
    """Send requests until ``end``, and count what becomes of them."""
    choice = random.Random(number)
    actions, weights = zip(*ACTIONS, strict=True)
    while time.monotonic() < end:
        action = choice.choices(actions, weights)[0]
        prompt = choice.choice(tuple(expected))
        try:
            text = action(port, prompt, choice)
        except GoneError:
            counts["tried again"] += 1
            time.sleep(0.2)
            continue
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
            counts["lost"] += 1
            print(f"lost ({action.__name__}): {error!r}", file=sys.stderr)
            continue
        counts[action.__name__] += 1
        verdict = judge(text, expected[prompt])
        if verdict is not None:
            counts[verdict] += 1
        if verdict == "wrong":
            print(
                f"wrong ({action.__name__}): {text!r} instead of {expected[prompt].text!r}", file=sys.stderr
            )


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no VmRSS")


def throughput(port: int, clients: int, expected: Mapping[str, Expected], seconds: float) -> float:
    """Generated tokens per second of all clients together."""
    end = time.monotonic() + seconds
    finished: list[float] = []

    def run(number: int) -> None:
        prompts = list(expected)
        step = number
        while time.monotonic() < end:
            whole(port, prompts[step % len(prompts)], random.Random(0))
            finished.append(time.monotonic())
            step += 1

    start = time.monotonic()
    join([threading.Thread(target=run, args=(number,)) for number in range(clients)])
    return len(finished) * TOKENS / (time.monotonic() - start)


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def load(arguments: argparse.Namespace, server: Server, expected: Mapping[str, Expected]) -> dict[str, Any]:
    """Run the clients; restart the server in between."""
    counts: Counts = Counter()
    end = time.monotonic() + arguments.seconds
    port = server.port
    threads = [
        threading.Thread(target=client, args=(number, port, expected, end, counts))
        for number in range(arguments.clients)
    ]
    memory = []
    for thread in threads:
        thread.start()
    started, restarts, cut_off = time.monotonic(), 0, 0
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 5))
        memory.append((round(time.monotonic() - started, 1), round(resident_mib(server.pid), 1)))
        if arguments.restart and time.monotonic() - started > arguments.restart and left > 30:
            cut_off += server.stop().cut_off
            server = open_server(arguments, port)
            server.start()
            started, restarts = time.monotonic(), restarts + 1
    for thread in threads:
        thread.join()
    memory.append((round(time.monotonic() - started, 1), round(resident_mib(server.pid), 1)))
    server.stop()
    return {"counts": dict(counts), "restarts": restarts, "cut_off": cut_off, "memory_mib": memory}


def open_server(arguments: argparse.Namespace, port: int = 0) -> Server:
    return Server(
        arguments.file,
        port=port,
        slots=arguments.slots,
        ctx=arguments.ctx,
        threads=arguments.threads,
        cache_mib=arguments.cache,
        limits=Limits(queue=4 * arguments.clients, stop_seconds=120),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--ctx", type=int, default=256, help="of each slot")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache", type=int, default=64, help="MiB for prompts")
    parser.add_argument("--restart", type=float, default=0, help="seconds between restarts; 0 for none")
    parser.add_argument("--rate-seconds", type=float, default=10, help="for each number of clients")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    server = open_server(arguments)
    server.start()
    expected = {prompt: measured(server.port, prompt) for prompt in BEGINNINGS}
    rates = {
        clients: round(throughput(server.port, clients, expected, arguments.rate_seconds), 1)
        for clients in (1, 4, 16)
    }
    found = {"tokens_per_second": rates, **load(arguments, server, expected)}
    counts = found["counts"]
    first, last = found["memory_mib"][0], found["memory_mib"][-1]
    print(f"tokens per second of 1, 4 and 16 clients: {rates}")
    print(f"requests: {counts}; {found['restarts']} restarts, {found['cut_off']} cut off")
    print(f"memory of the last process: {last[1]} MiB after {last[0]} s; of the first, {first[1]} MiB")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    bad = counts.get("lost", 0) + counts.get("wrong", 0) + found["cut_off"]
    print("nothing lost, nothing wrong" if not bad else f"{bad} answers lost, wrong or cut off")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
