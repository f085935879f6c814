"""The tools that build the native library, and whether the library found here runs on this CPU."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from bitexport.environment.check import Check
from bitexport.system.machine import cpu_flags

MINIMUM_CMAKE = (3, 21)  # as in native/CMakeLists.txt
_SECONDS = 60
_SOURCE_TREE = Path(__file__).resolve().parents[2]

# Uses both the language and its library: a new compiler may come with an old library.
_CPP17 = (
    "#include <optional>\n#include <string_view>\nint main() { if (std::optional<int> x; !x) return 0; }\n"
)

# Runs in a separate process: a library for another CPU kills the process, and cannot be unloaded.
_PROBE = """
import json, sys
import numpy as np
from bitexport.errors import BitexportError
from bitexport.runtime import ggml
from bitexport.runtime.library import api
from bitexport.system.native_files import find_library_dir
found = {}
try:
    found["folder"] = str(find_library_dir())
    found["compiled"] = api().llama_print_system_info().decode()
    ggml.quantize(np.linspace(-1, 1, 4096, dtype=np.float32).reshape(4, 1024), "q6_k", 1)
    try:
        found["tier"], found["layout"] = ggml.cpu_tier(), ggml.weight_layout()
    except BitexportError as error:
        found["tier_error"] = str(error)
except BitexportError as error:
    found["error"] = str(error)
sys.stdout.write(json.dumps(found))
"""

# Instruction sets: llama.cpp's name for what it was compiled for, and the kernel's name for what the CPU has.
_FLAGS = {
    "AVX": "avx", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma", "BMI2": "bmi2", "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f", "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16", "AMX_INT8": "amx_int8",
    "NEON": "asimd", "DOTPROD": "asimddp", "MATMUL_INT8": "i8mm", "SVE": "sve",
}  # fmt: skip


def check_compiler(command: str | None = None) -> list[Check]:
    """Whether ``c++``, or ``$CXX``, is installed and compiles C++17."""
    compiler = shlex.split(command or os.environ.get("CXX") or "c++")
    meaning = "Builds the native library (`make native`); not needed once that is built."
    install = "install g++ 9 or clang 10 or later (Debian: apt install g++), or set CXX"
    if not compiler or shutil.which(compiler[0]) is None:
        return [Check("compiler", f"{' '.join(compiler)} not found", "warning", meaning, install)]
    version = _run([*compiler, "--version"]).stdout.partition("\n")[0].strip()
    compiled = _run([*compiler, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"], _CPP17)
    if compiled.returncode != 0:
        why = (compiled.stderr.strip().splitlines() or ["no message"])[0]
        return [Check("compiler", f"{version}, cannot compile C++17: {why}", "warning", meaning, install)]
    return [Check("compiler", f"{version}, C++17", "ok", meaning)]


def check_cmake() -> list[Check]:
    meaning = "Drives the build of the native library (`make native`)."
    minimum = ".".join(map(str, MINIMUM_CMAKE))
    advice = f"install CMake {minimum} or later (pip install cmake, or Debian: apt install cmake)"
    if shutil.which("cmake") is None:
        return [Check("cmake", "not found", "warning", meaning, advice)]
    line = _run(["cmake", "--version"]).stdout.partition("\n")[0]
    version = re.search(r"(\d+)\.(\d+)", line)
    if version is None or (int(version[1]), int(version[2])) < MINIMUM_CMAKE:
        return [Check("cmake", f"{line}, expected {minimum} or later", "warning", meaning, advice)]
    builder = "ninja" if shutil.which("ninja") else "make"
    return [Check("cmake", f"{line.removeprefix('cmake version ')}, building with {builder}", "ok", meaning)]


def check_native(probe: str = _PROBE, flags: frozenset[str] | None = None) -> list[Check]:
    """The native library and the kernels it chooses.

    Args:
        probe: the Python program that loads the library and prints what it found.
        flags: the CPU's instruction sets; this CPU's if None.
    """
    meaning = "Runs GGUF files: `run`, `bench`, `parity`, `eval` and `doctor CKPT` need it."
    path = os.pathsep.join([str(_SOURCE_TREE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = _run([sys.executable, "-c", probe], environment={"PYTHONPATH": path})
    if done.returncode == -signal.SIGILL:
        advice = "build it here: `make clean native`; or with -DBITEXPORT_PORTABLE=ON for several machines"
        return [_native("was built for another CPU: it stops at an illegal instruction", meaning, advice)]
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return [_native(f"cannot be loaded: {why}", meaning, "rebuild it with `make native`")]
    found = json.loads(done.stdout)
    if "error" in found:
        what, _, todo = found["error"].rpartition("; ")
        return [_native(what or todo, meaning, todo)]
    return [_judge_build(found, meaning, cpu_flags() if flags is None else flags), _judge_kernels(found)]


def _native(value: str, meaning: str, advice: str) -> Check:
    return Check("native library", value, "problem", meaning, advice)


def _judge_build(found: dict[str, Any], meaning: str, flags: frozenset[str]) -> Check:
    """Compare what it was compiled for with what this CPU has; empty ``flags`` mean unknown."""
    compiled = {name for name in re.findall(r"(\w+) = 1", found["compiled"]) if name in _FLAGS}
    beyond = sorted(name for name in compiled if flags and _FLAGS[name] not in flags)
    unused = sorted(name for name, flag in _FLAGS.items() if flag in flags and name not in compiled)
    value = f"{found['folder']}, compiled for {' '.join(sorted(compiled)) or 'no particular instruction set'}"
    if beyond:
        advice = "build it here: `make clean native`"
        return _native(f"{value}; this CPU lacks {' '.join(beyond)}", meaning, advice)
    if unused:
        rest = " ".join(unused)
        meaning += f" Here ggml's own kernels (F16, Q4_0, ...) leave {rest} unused; the ternary ones do not."
        if Path(found["folder"]).parent.name != "bitexport":  # the library in a wheel is for many machines
            advice = "rebuild it with `make clean native` to use them"
            return Check("native library", value, "warning", meaning, advice)
    return Check("native library", value, "ok", meaning)


def _judge_kernels(found: dict[str, Any]) -> Check:
    meaning = "The ternary kernels for I2_S models. All compute the same bits; the best for this CPU is used."
    if "tier_error" in found:
        what, _, todo = found["tier_error"].rpartition("; ")
        return Check("kernels", what or todo, "problem", meaning, todo)
    value = f"{found['tier']}, weights in memory as {found['layout']}"
    forced = os.environ.get("BITEXPORT_TIER")
    if forced:
        return Check(
            "kernels",
            f"{value}, forced by BITEXPORT_TIER",
            "warning",
            meaning,
            "unset BITEXPORT_TIER to use the best tier",
        )
    if found["tier"] == "scalar":
        advice = "use a CPU with AVX2 or NEON; in a virtual machine, expose the host's CPU (`-cpu host`)"
        return Check("kernels", f"{value}: slow", "warning", meaning, advice)
    return Check("kernels", value, "ok", meaning)


def _run(
    command: list[str], text: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        input=text,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_SECONDS,
        check=False,
    )
