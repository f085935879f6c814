"""From a checkpoint to a service, on the shipped checkpoints, as a user would type it: `make demo`.

Every step runs the real command in its own process and stops the demo if it fails. The hub is one on loopback
that has the shipped student; with a model of the Hugging Face hub the commands are the same.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support import hub as loopback  # noqa: E402

CHECKPOINT = Path("examples/tiny-python")
GGUF = Path("build/demo/tiny-python.gguf")
PROMPT = '    def read(self, size=-1):\n        """Read up to size bytes'
STUDENT = "bitexport/en-fr"
FRENCH = Path("build/demo/en-fr.gguf")
SENTENCES = ["The file could not be opened.", "Show all files in this folder", "invalid number of arguments"]
PROMPTS = [f"<|en|>{sentence}<|fr|>" for sentence in SENTENCES]
SAMPLING = ["--temperature", "0.5", "--top-k", "20", "--seed", "3"]

Step = tuple[str, list[str]]
CONVERSION: list[Step] = [
    ("What the checkpoint contains", ["inspect", str(CHECKPOINT)]),
    ("Convert it to I2_S", ["convert", str(CHECKPOINT), str(GGUF), "--force"]),
    ("Compare C++ with PyTorch, logit by logit", ["parity", str(CHECKPOINT), str(GGUF), "--tokens", "32"]),
    ("Measure it", ["bench", str(GGUF), "--threads", "1,2", "--repetitions", "3"]),
    ("Let it write", ["run", str(GGUF), "--prompt", PROMPT, "--max-tokens", "96", *SAMPLING]),
]
FROM_THE_HUB: list[Step] = [
    ("A student that translates, from a hub", ["convert", STUDENT, str(FRENCH), "--force"]),
    ("Translate", ["run", str(FRENCH), "--prompt", PROMPTS[0], "--temperature", "0"]),
]
SHARING: list[Step] = [
    (
        "A model card, with what can be measured",
        ["card", str(FRENCH), "-o", "build/demo/README.md", "--force"],
    ),
]


class StepError(Exception):
    """A command failed."""


def announce(title: str, arguments: list[str]) -> list[str]:
    """Print what is run next; returns the command."""
    print(f"\n### {title}\n$ bitexport {shlex.join(arguments)}", flush=True)
    return [sys.executable, "-m", "bitexport", *arguments]


def run(steps: list[Step], environment: dict[str, str] | None = None) -> None:
    for title, arguments in steps:
        code = subprocess.run(announce(title, arguments), cwd=ROOT, env=environment, check=False).returncode
        if code != 0:
            raise StepError(f"bitexport {arguments[0]} gave exit code {code}")


def run_from_hub() -> None:
    """The steps that name a model of the hub, with a cache that is empty."""
    with loopback.serve() as hub, tempfile.TemporaryDirectory() as home:
        hub.add_folder(STUDENT, ROOT / "examples" / "en-fr")
        run(FROM_THE_HUB, loopback.environment(hub, Path(home)))


def serve() -> None:
    """Serve the student and let three clients ask at once, through OpenAI's API."""
    command = announce("Serve it, and ask three times at once", ["serve", str(FRENCH), "--port", "0"])
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        try:
            if not address:
                raise StepError("bitexport serve ended before it listened")
            print(address, flush=True)
            with ThreadPoolExecutor(len(PROMPTS)) as clients:
                answers = list(clients.map(lambda prompt: complete(address, prompt), PROMPTS))
        finally:
            server.terminate()
    for sentence, answer in zip(SENTENCES, answers, strict=True):
        print(f"{sentence} -> {answer}")


def complete(address: str, prompt: str) -> str:
    """The text of a completion."""
    body = json.dumps({"prompt": prompt, "max_tokens": 40, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
    return text.strip()


def main() -> int:
    (ROOT / GGUF).parent.mkdir(parents=True, exist_ok=True)
    try:
        run(CONVERSION)
        run_from_hub()
        serve()
        run(SHARING)
    except StepError as error:
        print(f"\nThe demo stops: {error}.", file=sys.stderr)
        return 1
    print("\nThat was the whole path. Next: bitexport convert YOUR_CHECKPOINT out.gguf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
