"""The whole path on the shipped checkpoints, as a user would type it: `make demo`.

Every step runs the real command in its own process and stops the demo if it fails.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = Path("examples/tiny-python")
GGUF = Path("build/demo/tiny-python.gguf")
PROMPT = '    def read(self, size=-1):\n        """Read up to size bytes'
STUDENT = Path("examples/en-fr")
FRENCH = Path("build/demo/en-fr.gguf")
PROMPTS = [
    "<|en|>The file could not be opened.<|fr|>",
    "<|en|>Show all files in this folder<|fr|>",
    "<|en|>invalid number of arguments<|fr|>",
]
PARITY_PROMPTS = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
SAMPLING = ["--temperature", "0.5", "--top-k", "20", "--seed", "3"]

STEPS: list[tuple[str, list[str]]] = [
    ("What the checkpoint contains", ["inspect", str(CHECKPOINT)]),
    ("Convert it to I2_S", ["convert", str(CHECKPOINT), str(GGUF), "--force"]),
    ("Compare C++ with PyTorch, logit by logit", ["parity", str(CHECKPOINT), str(GGUF), "--tokens", "32"]),
    ("Measure it", ["bench", str(GGUF), "--threads", "1,2", "--repetitions", "3"]),
    ("Let it write", ["run", str(GGUF), "--prompt", PROMPT, "--max-tokens", "96", *SAMPLING]),
    ("A distilled student, which translates: convert it", ["convert", str(STUDENT), str(FRENCH), "--force"]),
    ("Prove it", ["parity", str(STUDENT), str(FRENCH), *PARITY_PROMPTS, "--tokens", "24"]),
    *(("Translate", ["run", str(FRENCH), "--prompt", prompt, "--temperature", "0"]) for prompt in PROMPTS),
]


def main() -> int:
    (ROOT / GGUF).parent.mkdir(parents=True, exist_ok=True)
    for title, arguments in STEPS:
        print(f"\n### {title}\n$ bitexport {shlex.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "bitexport", *arguments]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code != 0:
            print(f"\nThe demo stops: bitexport {arguments[0]} gave exit code {code}.", file=sys.stderr)
            return code
    print("\nThat was the whole path. Next: bitexport convert YOUR_CHECKPOINT out.gguf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
