"""Build wheels that run on every Linux of an architecture, whatever its CPU: into dist/.

Usage: build_wheels.py [x86_64] [aarch64]      (both by default; run by `make wheels`)

The compiler is Zig's clang, which targets an old glibc and other architectures (package ziglang; auditwheel,
wheel and ninja are installed beside it, in build/wheels/env). Each level of native/levels/levels.cmake is a
build of libggml-cpu; everything else comes from the build of the lowest level. auditwheel then checks the
platform tag.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheels"
#: The oldest glibc that the wheels run on: that of RHEL 8, Debian 10 and Ubuntu 20.04.
GLIBC = "2.28"
#: As in native/levels/levels.cmake, slowest first.
LEVELS = {
    "x86_64": ("sse42", "avx2", "avx512", "avx512vnni", "amx"),
    "aarch64": ("armv8", "dotprod", "i8mm"),
}
TOOLS = ("ziglang==0.17.1", "auditwheel==6.8.2", "wheel==0.48.0", "ninja==1.13.2")

#: Zig takes a CPU's name and features instead of -march; clang's names of versions become its features.
_WRAPPER = """\
#!/bin/sh
for argument; do
    shift
    case $argument in
        -march=armv8-a) argument=-mcpu=generic ;;
        -march=armv8.*)
            features=$(echo "${{argument#-march=armv8.}}" | sed 's/-a/a/; s/fp16/fullfp16/')
            argument=-mcpu=generic+v8_$features ;;
    esac
    set -- "$@" "$argument"
done
exec '{python}' -m ziglang {command} "$@"
"""


def run(*command: str | Path) -> str:
    """Run a command and return its output; everything it prints is shown if it fails."""
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


def tools() -> Path:
    """The Python of an environment that has TOOLS."""
    environment = WORK / "env"
    python = environment / "bin" / "python"
    stamp = environment / "installed"
    if not stamp.is_file() or stamp.read_text() != "\n".join(TOOLS):
        run(sys.executable, "-m", "venv", environment)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS)
        stamp.write_text("\n".join(TOOLS))
    return python


def compilers(python: Path, architecture: str) -> list[str]:
    """CMake's options for Zig as the compiler of an architecture."""
    folder = WORK / architecture / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    target = f"-target {architecture}-linux-gnu.{GLIBC}"
    commands = {"cc": f"cc {target}", "c++": f"c++ {target}", "ar": "ar", "ranlib": "ranlib"}
    for name, command in commands.items():
        wrapper = folder / name
        text = _WRAPPER.format(python=python, command=command)
        if not wrapper.is_file() or wrapper.read_text() != text:  # its time decides what is compiled again
            wrapper.write_text(text)
            wrapper.chmod(0o755)
    return [
        "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={architecture}",
        f"-DCMAKE_C_COMPILER={folder / 'cc'}",
        f"-DCMAKE_CXX_COMPILER={folder / 'c++'}",
        f"-DCMAKE_AR={folder / 'ar'}",
        f"-DCMAKE_RANLIB={folder / 'ranlib'}",
        # Every library has its own copy of the C++ library, and must not use part of another's.
        "-DCMAKE_SHARED_LINKER_FLAGS=-s -Wl,-Bsymbolic",
        "-DCMAKE_EXE_LINKER_FLAGS_RELEASE=-s",
    ]


def build(python: Path, architecture: str, stage: Path) -> None:
    """Build and install the libraries of all levels below ``stage``."""
    cmake = shutil.which("cmake") or sys.exit("cmake is not installed; pip install cmake")
    jobs = str(len(os.sched_getaffinity(0)))
    options = compilers(python, architecture)
    options.append(f"-DCMAKE_MAKE_PROGRAM={python.parent / 'ninja'}")
    options.append(f"-DPython3_EXECUTABLE={sys.executable}")
    options.append(f"-DBITEXPORT_DOWNLOAD_DIR={ROOT / 'build' / 'download'}")
    for level in LEVELS[architecture]:
        print(f"{architecture}: {level}", flush=True)
        tree = WORK / architecture / level
        configure = ("-S", "native", "-B", tree, "-G", "Ninja", "-Wno-dev")
        run(cmake, *configure, *options, f"-DBITEXPORT_LEVEL={level}")
        base = level == LEVELS[architecture][0]
        targets = ("runtime", "pre_tokenizers", "bitexport-level") if base else ("ggml-cpu",)
        run(cmake, "--build", tree, "--parallel", jobs, "--target", *targets)
        for component in ("bitexport", "bitexport-cpu") if base else ("bitexport-cpu",):
            run(cmake, "--install", tree, "--component", component, "--prefix", stage)
    # what libggml names; whoever loads another level loads it before libggml
    libraries = stage / "bitexport" / "lib"
    shutil.copy(libraries / "levels" / LEVELS[architecture][0] / "libggml-cpu.so", libraries)


def pack(python: Path, architecture: str, stage: Path) -> Path:
    """Add the libraries to a wheel of the Python files; returns the wheel in dist/."""
    plain = WORK / "plain"
    shutil.rmtree(plain, ignore_errors=True)
    pip = ("-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps")
    run(sys.executable, *pip, "--config-settings", "wheel.cmake=false", "--wheel-dir", plain, ".")
    (wheel,) = plain.glob("*.whl")
    run(python, "-m", "wheel", "unpack", "--dest", plain, wheel)
    (unpacked,) = (path for path in plain.iterdir() if path.is_dir())
    shutil.copytree(stage / "bitexport", unpacked / "bitexport", dirs_exist_ok=True)
    (record,) = unpacked.glob("*.dist-info/WHEEL")
    tag = f"py3-none-manylinux_{GLIBC.replace('.', '_')}_{architecture}"
    lines = record.read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith(("Tag:", "Root-Is-Purelib"))]
    record.write_text("\n".join([*kept, "Root-Is-Purelib: false", f"Tag: {tag}", ""]))
    (ROOT / "dist").mkdir(exist_ok=True)
    run(python, "-m", "wheel", "pack", "--dest-dir", ROOT / "dist", unpacked)
    (result,) = (ROOT / "dist").glob(f"bitexport-*-{tag}.whl")
    return result


def check(python: Path, wheel: Path) -> None:
    """Fail unless auditwheel finds the wheel consistent with its tag."""
    report = " ".join(run(python, "-m", "auditwheel", "show", wheel).split())
    promised = "manylinux_" + wheel.stem.split("manylinux_")[1]
    found = report.split('consistent with the following platform tag: "')[-1].split('"')[0]
    needed = re.fullmatch(r"manylinux_(\d+)_(\d+)_\w+", found)
    limit = tuple(int(part) for part in GLIBC.split("."))
    if needed is None or (int(needed[1]), int(needed[2])) > limit:
        sys.exit(f"{wheel.name} promises {promised}; auditwheel says: {report}")
    print(f"dist/{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; auditwheel: {found}")


def check_names(architectures: list[str]) -> None:
    """End the script if an architecture is not one of ours."""
    unknown = set(architectures) - set(LEVELS)
    if unknown:
        sys.exit(f"unknown architecture {', '.join(sorted(unknown))}; expected {' or '.join(LEVELS)}")


def main(architectures: list[str]) -> None:
    check_names(architectures)
    python = tools()
    for architecture in architectures or list(LEVELS):
        stage = WORK / architecture / "stage"
        shutil.rmtree(stage, ignore_errors=True)
        build(python, architecture, stage)
        check(python, pack(python, architecture, stage))


if __name__ == "__main__":
    main(sys.argv[1:])
