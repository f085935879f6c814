"""Count each kernel tier's instructions; compare with benchmarks/instruction_counts.json.

Usage: check_instruction_counts.py [--arm] [--update] [--binary build/native/kernels/ternary/bench_once]
                                   [--counts benchmarks/instruction_counts.json]

Times vary by a fifth from hour to hour on a shared machine; instruction counts do not vary at all. Measures
one decode and one prefill shape for each tier and layout that valgrind can run (it has no AVX-512). With
--arm it counts the ARM tiers in qemu, on any machine, of the build that `make test-arm` leaves in build/arm,
and compares with benchmarks/instruction_counts_arm.json.

Exit code 0: no count is more than 3% above the recorded one; 3: one is; 1: the counts cannot be compared,
with the reason.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: name: rows x columns, tokens, calls. The widths are 2B4T's; few rows, because valgrind is 50 times slower.
SHAPES = {"decode": ("256x2560", 1, 4), "prefill": ("256x2560", 24, 1)}
#: Fewer rows and tokens: qemu writes a line for every instruction. 24 tokens are several tiles of every tier.
ARM_SHAPES = {"decode": ("64x2560", 1, 2), "prefill": ("64x2560", 24, 2)}
QEMU = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", "max"]
TOLERANCE = 0.03


class CannotCompare(Exception):  # noqa: N818 (an answer, not an error)
    """Why the counts cannot be compared; the message says what to do."""


def run(command: list[str]) -> str:
    """Standard output of a command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotCompare(f"{command[0]}: {error.strerror}; run `make native` first") from error
    if done.returncode != 0:
        raise CannotCompare(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout


def count(binary: Path, tier: str, layout: str, shape: str, tokens: int, calls: int) -> int:
    """Instructions of one call of the kernel."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "callgrind.out"
        collect = ["--collect-atstart=no", "--toggle-collect=bench_once_calls"]
        arguments = [str(binary), tier, layout, shape, str(tokens), str(calls)]
        run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", *collect, *arguments])
        found = re.search(r"^(?:summary|totals): (\d+)", output.read_text(), re.MULTILINE)
        if found is None or int(found[1]) == 0:
            raise CannotCompare(f"callgrind counted nothing in bench_once_calls of {binary}; was it inlined?")
        return int(found[1]) // calls


def count_in_qemu(binary: Path, tier: str, layout: str, shape: str, tokens: int, calls: int) -> int:
    """Instructions of one call of the kernel: what ``calls`` more of them add to a run."""
    totals = []
    for number in (1, 1 + calls):
        arguments = [str(binary), tier, layout, shape, str(tokens), str(number)]
        with subprocess.Popen(
            [*QEMU, "-singlestep", "-d", "nochain,exec", "-D", "/dev/stderr", *arguments],
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stderr is not None
            totals.append(sum(piece.count(b"Trace ") for piece in process.stderr))
        if process.returncode != 0:
            raise CannotCompare(f"{' '.join(arguments)} ended with {process.returncode} in qemu")
    if totals[0] == totals[1]:
        raise CannotCompare("qemu counted nothing; this version may have other options than -d nochain,exec")
    return (totals[1] - totals[0]) // calls


def measure_arm(binary: Path) -> dict[str, Any]:
    """Counts for every ARM tier, with the compiler and the machine."""
    if shutil.which(QEMU[0]) is None:
        raise CannotCompare(
            "qemu-aarch64 is not installed; install it, for example with apt install qemu-user"
        )
    if not binary.is_file():
        raise CannotCompare(f"{binary} is missing; build it with `make test-arm`")
    about = json.loads(run([*QEMU, str(binary)]))
    counts = {}
    for tier, layouts in about["tiers"].items():
        for layout in layouts if tier != "scalar" else ():  # a hundred times as many, and no kernel of ARM's
            for name, (shape, tokens, calls) in ARM_SHAPES.items():
                key = f"{tier} {layout} {name} {shape} x {tokens}"
                counts[key] = count_in_qemu(binary, tier, layout, shape, tokens, calls)
                print(f"{key}: {counts[key]:,}", file=sys.stderr)
    return {"compiler": about["compiler"], "machine": "aarch64", "instructions": counts}


def measure(binary: Path) -> dict[str, Any]:
    """Counts for every tier and layout that runs under valgrind, with the compiler and the machine."""
    if shutil.which("valgrind") is None:
        raise CannotCompare("valgrind is not installed; install it, for example with apt install valgrind")
    about = json.loads(run(["valgrind", "--tool=none", "--quiet", str(binary)]))
    counts = {}
    for tier, layouts in about["tiers"].items():
        for layout in layouts:
            for name, (shape, tokens, calls) in SHAPES.items():
                key = f"{tier} {layout} {name} {shape} x {tokens}"
                counts[key] = count(binary, tier, layout, shape, tokens, calls)
                print(f"{key}: {counts[key]:,}", file=sys.stderr)
    return {"compiler": about["compiler"], "machine": platform.machine(), "instructions": counts}


def regressions(kept: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Counts that are above the recorded ones by more than the tolerance, or are missing."""
    messages = []
    for key, before in kept["instructions"].items():
        now = found["instructions"].get(key)
        if now is None:
            messages.append(f"{key}: no longer counted (recorded: {before:,})")
        elif now > before * (1 + TOLERANCE):
            messages.append(f"{key}: {now:,} instructions, {100 * (now / before - 1):.1f}% above {before:,}")
    return messages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--update", action="store_true", help="record the current counts")
    parser.add_argument("--arm", action="store_true", help="count the ARM tiers in qemu")
    parser.add_argument("--binary", type=Path, help="bench_once of a build of the kernels")
    parser.add_argument("--counts", type=Path, help="the recorded counts")
    options = parser.parse_args()
    build, name = ("arm/ternary", "_arm") if options.arm else ("native/kernels/ternary", "")
    options.binary = options.binary or ROOT / "build" / build / "bench_once"
    options.counts = options.counts or ROOT / "benchmarks" / f"instruction_counts{name}.json"
    try:
        found = measure_arm(options.binary) if options.arm else measure(options.binary)
        if options.update:
            options.counts.write_text(json.dumps(found, indent=2) + "\n")
            print(f"recorded {len(found['instructions'])} counts in {options.counts}")
            return 0
        if not options.counts.exists():
            raise CannotCompare(
                f"{options.counts} is missing; record the counts of a good build with --update"
            )
        kept = json.loads(options.counts.read_text())
        if kept["machine"] != found["machine"]:
            raise CannotCompare(f"the recorded counts are for {kept['machine']}, this is {found['machine']}")
    except CannotCompare as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if kept["compiler"] != found["compiler"]:
        print(
            f"note: recorded with compiler {kept['compiler']}, counted with {found['compiler']}",
            file=sys.stderr,
        )
    messages = regressions(kept, found)
    for key in found["instructions"].keys() - kept["instructions"].keys():
        print(f"note: {key} is new; record it with --update", file=sys.stderr)
    print(
        "\n".join(messages) or f"{len(kept['instructions'])} counts, none more than 3% above the recorded one"
    )
    return 3 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
