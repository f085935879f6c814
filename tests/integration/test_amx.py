"""llama.cpp's AMX kernels next to PyTorch's, in one thread."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(
    not CPUINFO.exists() or "amx_int8" not in CPUINFO.read_text(), reason="this CPU has no AMX"
)
def test_pytorch_may_use_the_tiles_between_two_products(gguf_of: Callable[..., Path]) -> None:
    """PyTorch's bfloat16 product releases the tiles; the next product of llama.cpp ended the process."""
    program = """
        import sys
        import numpy as np
        import torch
        from bitexport.runtime.session import Session
        with Session(sys.argv[1], n_ctx=128, n_threads=2) as session:
            before = session.logits(list(range(40)))
            matrix = torch.randn(512, 512).bfloat16()
            matrix @ matrix
            np.testing.assert_array_equal(session.logits(list(range(40))), before)
        """
    file = gguf_of("packed-multiply", embed_type="q8_0")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
