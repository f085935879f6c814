"""A loaded model keeps no weight in memory twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bitexport.gguf.reader import read_gguf
from bitexport.runtime.session import Session
from tests.support.tiny_models import Shape

PAGE = 4096


def _resident_bytes_of(file: Path) -> int:
    """Bytes of the mapped file that are resident in this process."""
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            inside = line.endswith(str(file))
        elif inside and name == "Rss:":
            resident += int(rest.split()[0]) * 1024
    return resident


def test_repacked_weights_leave_the_mapped_file(gguf_of: Callable[..., Path]) -> None:
    path = gguf_of(shape=Shape(hidden=256, ffn=1024))
    ternary = [tensor.nbytes for tensor in read_gguf(path).tensors if tensor.type.name == "i2_s"]
    with Session(path) as session:
        session.advance([1, 2, 3])
        kept = _resident_bytes_of(path)
    # the two pages that each tensor shares with its neighbours may stay
    assert 0 < kept <= path.stat().st_size - sum(ternary) + 2 * PAGE * len(ternary)
