"""Nodes of the graph that are computed in one step: the same numbers as node by node, in every family."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bitexport.convert import convert
from tests.integration.test_head import run
from tests.support.family_cases import CASES, made

# Three tokens at once, then 24 one by one; with "observe", most nodes of every layer are asked for.
DECODE = """
import sys
import numpy as np
from bitexport.runtime.ggml import cpu_library
from bitexport.runtime.session import Session
from bitexport.runtime.trace import Tracer
NAMES = (
    "attn_norm", "Qcur", "Kcur", "Vcur", "attn_sub_norm", "attn_out", "ffn_inp", "l_out",
    "ffn_norm", "ffn_gate", "ffn_up", "ffn_relu", "ffn_gated", "ffn_sub_norm", "ffn_out",
)
path, target, threads, exact, observe = sys.argv[1:]
tracer = Tracer() if observe == "observe" else None
with Session(path, n_ctx=64, n_threads=int(threads), exact=exact == "exact", tracer=tracer) as session:
    session.advance([7, 8, 9])
    before = cpu_library().bitexport_nodes_joined()
    rows = []
    for step in range(24):
        if tracer:
            with tracer.record(frozenset(NAMES)) as trace:
                rows.append(session.feed([3 + step * 5]))
            for name in NAMES:
                assert trace.get((f"{name}-0",), 1) is not None, name
        else:
            rows.append(session.feed([3 + step * 5]))
    print("joined", cpu_library().bitexport_nodes_joined() - before)
    np.save(target, np.stack(rows))
"""

# Nodes of a decoding step of two layers that are computed in the step of another one, at least. Layers with
# norms in front of single products, or in float, have fewer; the last layer's first sum is not next to its
# product.
JOINED = {
    "2B4T": 35,
    "2B4T with a bias": 20,
    "1bitLLM": 30,
    "Llama": 20,
    "Llama with biases": 10,
    "Llama student": 20,
    "Qwen3 student": 20,
    "Qwen3 student with use_rms_norm and float layers": 2,
    "Gemma 3 student": 10,
    "HunYuan student": 20,
}


@dataclass
class Decoded:
    logits: np.ndarray  # float32 [24, vocab]
    joined: int  # nodes


def decode(gguf: Path, threads: int, exact: str = "", observe: str = "", **environment: str) -> Decoded:
    target = gguf.with_suffix(".npy")
    done = run("-c", DECODE, gguf, target, str(threads), exact, observe, **environment)
    assert done.returncode == 0, done.stderr
    count = re.search(r"joined (\d+)", done.stdout)
    assert count is not None
    return Decoded(np.load(target), int(count[1]))


@pytest.fixture(scope="module")
def gguf_of_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    known: dict[str, Path] = {}

    def convert_once(name: str) -> Path:
        if name not in known:
            folder = tmp_path_factory.mktemp("case")
            known[name] = folder / "m.gguf"
            convert(made(CASES[name], folder), known[name], embed_type="f16")
        return known[name]

    return convert_once


@pytest.mark.parametrize("name", JOINED)
def test_the_numbers_equal_those_of_the_stock_graph(gguf_of_case: Callable[[str], Path], name: str) -> None:
    gguf = gguf_of_case(name)
    stock = decode(gguf, 2, BITEXPORT_GRAPH="stock")
    assert stock.joined == 0
    fused = decode(gguf, 2)
    assert fused.joined >= 24 * JOINED[name], fused.joined / 24
    assert fused.logits.tobytes() == stock.logits.tobytes()


@pytest.mark.parametrize("exact", ["", "exact"])
def test_the_number_of_threads_does_not_change_the_result(
    gguf_of_case: Callable[[str], Path], exact: str
) -> None:
    gguf = gguf_of_case("2B4T")
    stock = decode(gguf, 1, exact, BITEXPORT_GRAPH="stock").logits.tobytes()
    assert all(decode(gguf, threads, exact).logits.tobytes() == stock for threads in (1, 2, 3, 5))


def test_an_observed_run_computes_node_by_node(gguf_of_case: Callable[[str], Path]) -> None:
    gguf = gguf_of_case("2B4T")
    observed = decode(gguf, 2, "exact", "observe")
    assert observed.joined <= 24 * 2, "only writes into the cache, which nobody asked for"
    assert observed.logits.tobytes() == decode(gguf, 2, "exact").logits.tobytes()


def test_another_value_of_the_override_is_an_error(gguf_of_case: Callable[[str], Path]) -> None:
    done = run("-m", "bitexport", "run", gguf_of_case("2B4T"), "--prompt", "x", BITEXPORT_GRAPH="fast")
    assert done.returncode == 1
    assert "BITEXPORT_GRAPH is 'fast'; expected 'stock'" in done.stderr
