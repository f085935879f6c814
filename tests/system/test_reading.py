"""Reading files of unknown origin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitexport.cli.options import read_text as read_option
from bitexport.errors import UsageError
from bitexport.system.limited import LimitError, run_limited
from bitexport.system.reading import read_regular, read_text
from tests.support.repository import REPOSITORY


def test_only_regular_files_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path, 5) == read_regular(tmp_path / "link", 5) == b"12345"
    os.mkfifo(tmp_path / "fifo")
    for place, message in (
        (path, "more than the 4 bytes"),
        (tmp_path / "fifo", "it is a FIFO, expected a regular file"),
        (Path("/dev/zero"), "it is a device"),
        (tmp_path, "it is a folder"),
        (Path("/proc/self/maps"), "more than the 4 bytes"),  # whose size is 0
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(OSError, match=message):
            read_regular(place, 4)


def test_texts_have_a_size(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("a\r\nb\rü\n".encode())
    assert read_text(path) == path.read_text(encoding="utf-8")
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        read_text(path, 4)
    with pytest.raises(UsageError, match=r"--text /dev/zero: it has more than \d+ bytes; give a UTF-8"):
        read_option(Path("/dev/zero"))


def test_a_process_with_limits() -> None:
    program = "tests.support.programs.limits"
    assert run_limited(program, "neither", memory=1 << 30, seconds=60) == {"a": 1}
    with pytest.raises(LimitError, match="needs more than 512 MiB of memory") as caught:
        run_limited(program, "memory", memory=512 << 20, seconds=60)
    assert not caught.value.time
    with pytest.raises(LimitError, match=r"takes more than 0\.1 s") as caught:
        run_limited(program, "time", memory=1 << 30, seconds=0.1)
    assert caught.value.time


def test_a_lower_limit_of_the_system_stays() -> None:
    """As ``ulimit -v`` sets it; only some processes may raise it again."""
    program = (
        "import resource\n"
        "from bitexport.system.limited import run_limited\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
        "print(run_limited('tests.support.programs.limits', 'neither', memory=1 << 50, seconds=60))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("{'a': 1}\n", "")
