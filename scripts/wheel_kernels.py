"""Build the kernels with the compiler of the wheels, for every architecture, and run their tests.

Usage: wheel_kernels.py [x86_64] [aarch64]      (both by default; run by `make test-wheel-kernels`)

Wheels take too long for every change. The kernels are where compilers differ: this takes minutes and finds
what Zig's clang refuses, warns of, or computes otherwise than GCC. ARM's tests run under QEMU, on a CPU that
has everything, with the libraries of Debian's cross compiler, as those of `make test-arm` do.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import build_wheels
from build_wheels import LEVELS, ROOT, WORK, compilers, run

#: How to run programs of another architecture, and the CPU on which all their tests run.
EMULATOR = "qemu-{0};-L;/usr/{0}-linux-gnu"
EMULATED = {"aarch64": "max=i8mm"}


def test(python: Path, architecture: str) -> None:
    """Build and test the kernels for an architecture; a warning is an error."""
    tree = WORK / architecture / "kernels"
    options = compilers(python, architecture)
    options += [f"-DCMAKE_MAKE_PROGRAM={python.parent / 'ninja'}", "-DCMAKE_CXX_FLAGS=-Werror"]
    options += ["-DTERNARY_BENCHMARK=OFF"]
    if architecture != platform.machine():
        options.append(f"-DTERNARY_EMULATED_CPUS={EMULATED[architecture]}")
        options.append(f"-DCMAKE_CROSSCOMPILING_EMULATOR={EMULATOR.format(architecture)}")
    jobs = str(len(os.sched_getaffinity(0)))
    run("cmake", "-S", "native/kernels", "-B", tree, "-G", "Ninja", "-Wno-dev", "--log-level=ERROR", *options)
    run("cmake", "--build", tree, "--parallel", jobs)
    os.environ["TERNARY_TEST_QUICK"] = "1"
    done = run("ctest", "--test-dir", tree, "--parallel", jobs, "--output-on-failure")
    print(f"{architecture}: {done.strip().splitlines()[-3]}", flush=True)


def main(architectures: list[str]) -> None:
    build_wheels.check_names(architectures)
    python = build_wheels.tools()
    for architecture in architectures or list(LEVELS):
        test(python, architecture)


if __name__ == "__main__":
    os.chdir(ROOT)
    main(sys.argv[1:])
