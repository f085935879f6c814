"""The kernels stand alone: what a file under native/kernels may include."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

KERNELS = REPOSITORY / "native" / "kernels"
SOURCES = sorted(path for path in KERNELS.rglob("*") if path.suffix in {".cpp", ".h", ".inc"})

#: In angle brackets: C++'s own headers, whose names have neither dot nor slash; the compiler's intrinsics;
#: the system's, for what C++ lacks: CPU features, large pages, sleeping threads, signal masks.
STANDARD = re.compile("[a-z_]+")
INTRINSICS = {"arm_neon.h", "emmintrin.h", "immintrin.h"}
SYSTEM = {"cpuid.h", "sys/auxv.h", "sys/mman.h", "sys/sysctl.h"} | {
    "fcntl.h",
    "linux/futex.h",
    "pthread.h",
    "sched.h",
    "sys/syscall.h",
    "unistd.h",
}

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include\b[ \t]*(?:<([^>]+)>|"([^"]+)")?', re.MULTILINE)


def violations(source: Path, root: Path) -> list[str]:
    """A line for each include that ``source`` must not have; quoted ones start at its folder or ``root``."""
    found = []
    text = source.read_text(encoding="utf-8")
    for match in _INCLUDE.finditer(text):
        system, own = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        name = own or system or "what a macro names"
        if own is not None:
            places = [(folder / own).resolve() for folder in (source.parent, root)]
            allowed = any(place.is_file() and place.is_relative_to(root.resolve()) for place in places)
        else:
            allowed = bool(STANDARD.fullmatch(name)) or name in INTRINSICS | SYSTEM
        if not allowed:
            found.append(f"{source.relative_to(root)}:{line} includes {name}")
    return found


def test_kernels_include_nothing_of_ggml() -> None:
    assert len(SOURCES) > 50
    found = [violation for source in SOURCES for violation in violations(source, KERNELS)]
    assert not found, "native/kernels/CMakeLists.txt says what a kernel may include:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('#include "ggml.h"', "ggml.h"),
        ("#include <ggml.h>", "ggml.h"),
        ('#include "../llama_cpp/ggml/sharing.h"', "../llama_cpp/ggml/sharing.h"),
        ("  #  include <omp.h>", "omp.h"),
        ("#include HEADER", "what a macro names"),
    ],
)
def test_a_forbidden_include_is_found(tmp_path: Path, line: str, named: str) -> None:
    root = tmp_path / "kernels"
    (root / "ternary").mkdir(parents=True)
    outside = tmp_path / "llama_cpp" / "ggml" / "sharing.h"
    outside.parent.mkdir(parents=True)
    outside.touch()
    (root / "ternary" / "ternary.h").touch()
    source = root / "ternary" / "scalar.cpp"
    source.write_text(f'#include "ternary.h"\n#include "ternary/ternary.h"\n#include <cstdint>\n{line}\n')
    assert violations(source, root) == [f"ternary/scalar.cpp:4 includes {named}"]
