"""Tensors of llama.cpp's graph, read by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitexport.errors import NativeLibraryError
from bitexport.runtime import trace as module
from bitexport.runtime.session import Session
from bitexport.runtime.trace import Tracer

Maker = Callable[..., Path]


@pytest.mark.parametrize("count", [1, 5])
def test_tensors_by_name(gguf_of: Maker, count: int) -> None:
    tracer = Tracer()
    with Session(gguf_of("packed-multiply"), n_ctx=16, tracer=tracer) as session:
        untraced = session.logits(range(3, 3 + count))
        with tracer.record(frozenset({"result_output", "Qcur", "attn_norm"})) as trace:
            logits = session.logits(range(3, 3 + count))
    np.testing.assert_array_equal(logits, untraced)  # recording does not change the result
    np.testing.assert_array_equal(trace.get(["result_output"], count), logits)
    product = trace.get(["Qcur-1"], count, ["MUL_MAT"])
    rotated = trace.get(["Qcur-1"], count)  # the last of that name
    assert product is not None
    assert rotated is not None
    assert product.shape == rotated.shape == (count, 256)
    np.testing.assert_allclose(rotated[0], product[0], rtol=1e-6)  # position 0 is not rotated
    assert (count == 1) == np.allclose(rotated, product, rtol=1e-6)
    assert trace.get(["Kcur-1"], count) is None  # not recorded
    assert trace.get(["attn_norm-2"], count) is None  # there are two layers


def test_batches_are_joined(gguf_of: Maker) -> None:
    tracer = Tracer()
    with Session(gguf_of("packed-multiply"), n_ctx=16, tracer=tracer) as session:
        with tracer.record(frozenset({"l_out"})) as trace:
            session.clear()
            session.feed([3, 4])
            session.feed([5])
        with tracer.record(frozenset({"l_out"})) as whole:
            session.logits([3, 4, 5])
    # the last block only computes tokens whose logits are needed: the second of the first two
    np.testing.assert_allclose(trace.get(["l_out-0"], 3), whole.get(["l_out-0"], 3), atol=1e-4)
    assert trace.get(["l_out-1"], 2) is not None


def test_a_tensor_that_cannot_be_read(gguf_of: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_F32", 1)
    tracer = Tracer()
    with (
        Session(gguf_of("packed-multiply"), n_ctx=16, tracer=tracer) as session,
        pytest.raises(NativeLibraryError, match="cannot be read: type 0, expected float32"),
        tracer.record(frozenset({"l_out"})),
    ):
        session.logits([3])
