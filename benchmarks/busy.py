"""Busy processes, to measure something in company.

Usage: busy.py COUNT -- COMMAND ...    runs the command beside that many of them
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

# It ends with the process that started it, however that one ends.
_LOOP = """
import os, sys
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep ``count`` processes busy, each as much of a processor as it can get, until the block ends."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", _LOOP, str(os.getpid())], stdout=subprocess.PIPE)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()  # it runs
        yield


def main(arguments: list[str]) -> int:
    """Run a command beside busy processes; returns its exit status."""
    if len(arguments) < 3 or not arguments[0].isdecimal() or arguments[1] != "--":
        print(f"usage: {sys.argv[0]} COUNT -- COMMAND ...", file=sys.stderr)
        return 2
    with busy(int(arguments[0])):
        return subprocess.run(arguments[2:], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
