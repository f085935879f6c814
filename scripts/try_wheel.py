"""Install a wheel in an empty environment and use it, on this CPU and on an emulated one.

Usage: try_wheel.py WHEEL      (run by `make wheels`)

Converts a shipped checkpoint. Translates with it on every level of instruction sets that this CPU can run;
if qemu-x86_64 is installed, also on a CPU that has SSE4.2 and nothing newer. All must give the same text.
libllama must refuse damaged files without ending the process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "examples" / "en-fr"
PROMPT = "<|en|>The file could not be opened.<|fr|>"
ANSWER = "Le fichier n'a pas pu être ouvert."
#: A CPU of 2008: SSE4.2 and POPCNT, no AVX.
OLDEST = "Nehalem"

#: The number of layers in the file: the key, and the type of the number, uint32.
_LAYERS = b"bitnet-b1.58.block_count" + (4).to_bytes(4, "little")

#: Opens a file without our checks: an error in one library must reach the handler in another.
_OPEN = """
import os, sys
from bitexport.runtime.library import bind
api = bind().llama_cpp
model = api.llama_model_load_from_file(os.fsencode(sys.argv[1]), api.llama_model_default_params())
print("opened" if model else "refused")
"""

_USABLE = "from bitexport.runtime import levels; print(*levels._usable(levels.find_library_dir()))"


def run(*command: str | Path, **environment: str) -> str:
    """Run a command and return its output; ends this script if the command fails."""
    variables = {**os.environ, "BITEXPORT_LIB_DIR": "", **environment}
    done = subprocess.run(command, text=True, capture_output=True, env=variables)
    if done.returncode != 0:
        words = " ".join(map(str, command))
        sys.exit(f"{done.stdout}\n{done.stderr}\n{words} ended with {done.returncode}")
    return done.stdout


def install(wheel: Path, environment: Path) -> Path:
    """Install the wheel and what it needs; returns the environment's Python."""
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    started = time.monotonic()
    run(python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel)
    print(f"installed with all it needs in {time.monotonic() - started:.0f} s")
    return python


def translate(*command: str | Path, name: str, file: Path, **environment: str) -> None:
    """Run the model with a Python, and check its answer."""
    started = time.monotonic()
    options = ("run", file, "--prompt", PROMPT, "--temperature", "0", "--threads", "2", "--quiet")
    text = run(*command, "-m", "bitexport", *options, **environment).strip()
    if text != ANSWER:
        sys.exit(f"{name}: {text!r} instead of {ANSWER!r}")
    print(f"{name}: {text} ({time.monotonic() - started:.1f} s)")


def refuse_damaged(python: Path, file: Path) -> None:
    """Let libllama open a file that ends too early, and one on which it fails an assertion."""
    data = file.read_bytes()
    layers = data.index(_LAYERS) + len(_LAYERS)
    damaged = file.with_name("damaged.gguf")
    for content in (data[:-1000], data[:layers] + bytes(4) + data[layers + 4 :]):
        damaged.write_bytes(content)
        if (answer := run(python, "-c", _OPEN, damaged)) != "refused\n":
            sys.exit(f"libllama opened a damaged file: {answer}")
    print("damaged files: refused")


def main(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where no checkout's package is found
        python = install(wheel, Path(folder) / "environment")
        file = Path(folder) / "en-fr.gguf"
        run(python, "-m", "bitexport", "convert", CHECKPOINT, file)
        for level in run(python, "-c", _USABLE).split():
            translate(python, name=level, file=file, BITEXPORT_LEVEL=level)
        emulator = shutil.which("qemu-x86_64")
        if emulator is None:
            print(f"not tried on an emulated {OLDEST}: qemu-x86_64 is not installed (package qemu-user)")
        else:
            # the trial's limit on memory is too small for an emulator
            old = {"BITEXPORT_TRIAL": "0"}
            translate(emulator, "-cpu", OLDEST, python, name=f"emulated {OLDEST}", file=file, **old)
        refuse_damaged(python, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
