"""ggml's quantizers through ctypes, compared with the gguf package's NumPy ones."""

from __future__ import annotations

import os
import subprocess
import sys

import gguf
import numpy as np
import pytest

from bitexport.errors import UnsupportedError
from bitexport.runtime.ggml import cpu_tier, quantize
from tests.support.repository import REPOSITORY

WEIGHTS = np.random.default_rng(7).standard_normal((37, 512)).astype(np.float32)


@pytest.mark.parametrize("name", ["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "tq2_0"])
def test_bytes_are_those_of_the_gguf_package(name: str) -> None:
    kind = gguf.GGMLQuantizationType[name.upper()]
    expected = gguf.quants.quantize(WEIGHTS, kind)
    assert quantize(WEIGHTS, name).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("name", "error"),
    [("q6_k", 0.02), ("q5_k", 0.04), ("q4_k", 0.08), ("iq4_nl", 0.09), ("iq4_xs", 0.09), ("q3_k", 0.17)],
)
def test_values_are_near_the_original(name: str, error: float) -> None:
    # the gguf package reads these types but does not write them
    back = gguf.quants.dequantize(quantize(WEIGHTS, name), gguf.GGMLQuantizationType[name.upper()])
    assert np.linalg.norm(back - WEIGHTS) < error * np.linalg.norm(WEIGHTS)


@pytest.mark.parametrize("name", ["f16", "q8_0", "q6_k", "tq2_0"])
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_bytes_do_not_depend_on_threads(name: str, threads: int) -> None:
    assert quantize(WEIGHTS, name, threads).tobytes() == quantize(WEIGHTS, name, 1).tobytes()


def test_input_need_not_be_contiguous() -> None:
    assert quantize(WEIGHTS.T.copy().T, "q8_0").tobytes() == quantize(WEIGHTS, "q8_0").tobytes()


def test_unknown_type() -> None:
    with pytest.raises(UnsupportedError, match=r"'q9_0'; expected one of f16, .*q6_k, .*tq2_0"):
        quantize(WEIGHTS, "q9_0")


def test_rows_that_are_not_a_multiple_of_the_block() -> None:
    with pytest.raises(UnsupportedError, match=r"\(2, 100\) cannot be stored as q6_k.*multiple of 256"):
        quantize(np.zeros((2, 100), np.float32), "q6_k")


@pytest.mark.parametrize("tier", ["scalar", cpu_tier()])
def test_tier_can_be_forced(tier: str) -> None:
    assert _chosen_with(BITEXPORT_TIER=tier).stdout.split()[0] == tier


@pytest.mark.parametrize("layout", ["2bit", "1.6bit"])
def test_layout_can_be_forced(layout: str) -> None:
    done = _chosen_with(BITEXPORT_TIER="scalar", BITEXPORT_LAYOUT=layout)
    assert done.stdout.split() == ["scalar", layout], done.stderr


@pytest.mark.parametrize("variable", ["BITEXPORT_TIER", "BITEXPORT_LAYOUT"])
def test_an_unknown_choice_is_an_error(variable: str) -> None:
    result = _chosen_with(**{variable: "neon512"})
    assert result.stdout == ""
    assert f"{variable}=neon512" in result.stderr
    assert "NativeLibraryError" in result.stderr
    assert "bitexport: " not in result.stderr  # the library's own message, which says the same


def _chosen_with(**variables: str) -> subprocess.CompletedProcess[str]:
    code = "from bitexport.runtime.ggml import cpu_tier, weight_layout; print(cpu_tier(), weight_layout())"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
