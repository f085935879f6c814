"""Install a wheel in an empty environment and use it, on this CPU and on emulated ones.

Usage: try_wheel.py WHEEL ...      (run by `make wheels`)

Converts a shipped checkpoint and translates with it, on every level of instruction sets and on emulated CPUs
that have no more than a level needs: all must give the same text. libllama must refuse damaged files without
ending the process. A wheel for the architecture of this machine also serves a request over HTTP. A wheel for
another one runs in that architecture's Python, under QEMU.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import emulated_python

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "examples" / "en-fr"
PROMPT = "<|en|>The file could not be opened.<|fr|>"
ANSWER = "Le fichier n'a pas pu être ouvert."
#: Emulated CPUs, from 2008 (without AVX), 2012, 2018 and today, and the level that must be chosen on each.
EMULATED = {
    "x86_64": {"Nehalem": "sse42"},
    "aarch64": {"cortex-a53": "armv8", "cortex-a76": "dotprod", "max": "i8mm"},
}

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


def translate(*command: str | Path, name: str, file: Path, **environment: str) -> None:
    """Run the model with a Python, and check its answer."""
    started = time.monotonic()
    options = ("run", file, "--prompt", PROMPT, "--temperature", "0", "--threads", "2", "--quiet")
    text = run(*command, "-m", "bitexport", *options, **environment).strip()
    if text != ANSWER:
        sys.exit(f"{name}: {text!r} instead of {ANSWER!r}")
    print(f"{name}: {text} ({time.monotonic() - started:.1f} s)", flush=True)


def refuse_damaged(*python: str | Path, file: Path, **environment: str) -> None:
    """Let libllama open a file that ends too early, and one on which it fails an assertion."""
    data = file.read_bytes()
    layers = data.index(_LAYERS) + len(_LAYERS)
    damaged = file.with_name("damaged.gguf")
    for content in (data[:-1000], data[:layers] + bytes(4) + data[layers + 4 :]):
        damaged.write_bytes(content)
        if (answer := run(*python, "-c", _OPEN, damaged, **environment)) != "refused\n":
            sys.exit(f"libllama opened a damaged file: {answer}")
    print("damaged files: refused", flush=True)


def serve(python: Path, file: Path) -> None:
    """Ask a server for the same translation."""
    command = [python, "-m", "bitexport", "serve", file, "--port", "0", "--quiet"]
    variables = {**os.environ, "BITEXPORT_LIB_DIR": ""}
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=variables) as server:
        try:
            text = complete(server)
        finally:
            server.terminate()
    if text != ANSWER or server.returncode != 0:
        sys.exit(f"serve: {text!r} instead of {ANSWER!r}, exit code {server.returncode}")
    print(f"serve: {text}", flush=True)


def complete(server: subprocess.Popen[str]) -> str:
    """The server's completion of the prompt."""
    assert server.stdout is not None
    address = server.stdout.readline().strip()
    body = json.dumps({"prompt": PROMPT, "max_tokens": 40, "temperature": 0}).encode()
    request = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
    return text.strip()


def try_here(wheel: Path, folder: Path) -> None:
    """Use a wheel for this machine's architecture."""
    run(sys.executable, "-m", "venv", folder / "environment")
    python = folder / "environment" / "bin" / "python"
    started = time.monotonic()
    run(python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel)
    print(f"installed with all it needs in {time.monotonic() - started:.0f} s", flush=True)
    file = folder / "en-fr.gguf"
    run(python, "-m", "bitexport", "convert", CHECKPOINT, file)
    for level in run(python, "-c", _USABLE).split():
        translate(python, name=level, file=file, BITEXPORT_LEVEL=level)
    refuse_damaged(python, file=file)
    serve(python, file)
    emulator = shutil.which(f"qemu-{platform.machine()}")
    if emulator is None:
        print("not tried on emulated CPUs: QEMU is not installed (package qemu-user)")
        return
    try_emulated([emulator, str(python)], EMULATED[platform.machine()], file)


def try_elsewhere(wheel: Path, folder: Path, architecture: str) -> None:
    """Use a wheel for another architecture."""
    if missing := emulated_python.missing_programs(architecture):
        print(f"not tried: {', '.join(missing)} missing")
        return
    debian = ROOT / "build" / "wheels" / architecture / "debian"
    try:
        python, version = emulated_python.python_command(debian, architecture)
    except subprocess.CalledProcessError as error:
        print(f"not tried: apt has no Python for {architecture} here ({error})")
        return
    target = ("--python-version", version, "--implementation", "cp")
    target += tuple(f"--abi={abi}" for abi in (f"cp{version.replace('.', '')}", "abi3", "none"))
    target += tuple(f"--platform=manylinux_2_{minor}_{architecture}" for minor in (28, 17))
    packages = folder / "packages"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--only-binary", ":all:", *target, "--target", packages, wheel)
    file = folder / "en-fr.gguf"
    # here, because convert starts a process for the tokenizer, which an emulated Python cannot
    run(sys.executable, "-m", "bitexport", "convert", CHECKPOINT, file)
    try_emulated(python, EMULATED[architecture], file, PYTHONPATH=str(packages))
    refuse_damaged(*python, file=file, PYTHONPATH=str(packages))


def try_emulated(python: list[str], cpus: dict[str, str], file: Path, **environment: str) -> None:
    """Use the wheel on emulated CPUs; ``python`` starts with the emulator."""
    emulator, *rest = python
    for cpu, level in cpus.items():
        command = [emulator, "-cpu", cpu, *rest]
        usable = run(*command, "-c", _USABLE, **environment).split()
        if usable[-1] != level:
            sys.exit(f"emulated {cpu}: level {usable[-1]} instead of {level}")
        # The system cannot start the emulated Python as a child, which a trial is.
        translate(*command, name=f"emulated {cpu}, {level}", file=file, BITEXPORT_TRIAL="0", **environment)


def main(wheels: list[Path]) -> None:
    for wheel in wheels:
        architecture = next(name for name in EMULATED if wheel.stem.endswith(name))
        print(f"{wheel.name}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # where no checkout's package is found
            if architecture == platform.machine():
                try_here(wheel, Path(folder))
            else:
                try_elsewhere(wheel, Path(folder), architecture)
        os.chdir(ROOT)


if __name__ == "__main__":
    main([Path(name).resolve() for name in sys.argv[1:]])
