"""A model keeps no weight in memory twice, and takes no memory for tokens that are not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bitexport.gguf.reader import read_gguf
from bitexport.runtime.session import Session
from tests.support.repository import REPOSITORY
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


#: Prints bytes: resident before the model, the peak while it is loaded and run, resident afterwards.
_MEASURE = """
import json, sys
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.session import Session
from bitexport.runtime.loading import checked_file
from bitexport.runtime.library import api
from bitexport.system.machine import peak_rss_bytes, resident_bytes
api()
checked_file(sys.argv[1])
before = resident_bytes()
assert peak_rss_bytes() < before + 4e6
with Session(sys.argv[1], n_ctx=4096, n_threads=1, exact=False) as session:
    session.advance([1])
    print(json.dumps([before, peak_rss_bytes(), resident_bytes()]))
"""


def test_the_peak_is_the_file_and_ten_percent(gguf_of: Callable[..., Path]) -> None:
    # 25 MB of layers, and a cache for which 4,096 tokens would take 96 MiB
    shape = Shape(hidden=1024, ffn=4096, layers=6, heads=8, kv_heads=8, context=4096)
    path = gguf_of(shape=shape)
    cache = 4096 * shape.layers * 2 * shape.hidden * 2
    size = path.stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    before, peak, after = json.loads(done.stdout)
    buffers = 8 << 20  # activations, logits, the tokens in the cache
    assert size > 24e6
    assert cache > 3 * size
    assert peak - before <= 1.1 * size + buffers
    assert after - before <= 1.1 * size + buffers
