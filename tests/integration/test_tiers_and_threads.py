"""Through libllama, every kernel tier, weight layout and number of threads gives the same bits.

Except attention, which sums floats: there are versions of it for some tiers, and llama.cpp's for the others.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.busy import busy
from bitexport.convert import convert
from bitexport.runtime.ggml import cpu_tier
from tests.support.repository import REPOSITORY

TIERS_OF = {
    "x86_64": (
        "scalar",
        "avx2",
        "avx512bw",
        "avx512vnni256",
        "avxvnni",
        "avx512vnni",
        "avx512vbmi",
        "avx512gfni",
        "avx512amx",
    ),
    "aarch64": ("scalar", "neon", "dotprod", "i8mm"),
}
TIERS = TIERS_OF.get(platform.machine(), ("scalar",))
DIGEST = "tests.support.programs.digest"


def run(
    gguf: Path, tier: str, threads: int, layout: str = "", *, as_run: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", DIGEST, str(gguf), str(threads), *(["--as-run"] if as_run else [])],
        env={**os.environ, "BITEXPORT_TIER": tier, "BITEXPORT_LAYOUT": layout, **environment},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[..., Path]) -> Path:
    target = tmp_path_factory.mktemp("tiers") / "model.gguf"
    convert(checkpoint_of("packed-multiply"), target)
    return target


@pytest.fixture(scope="module")
def expected(gguf: Path) -> dict[str, str]:
    """The result of the scalar reference with one thread."""
    done = run(gguf, "scalar", 1)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def available(gguf: Path) -> list[str]:
    """The tiers of this build that this CPU supports, from the error message for an unknown tier."""
    done = run(gguf, "no-such-tier", 1)
    assert done.returncode != 0
    listed = re.search(r"expected one of: ([^;]+);", done.stderr)
    assert listed is not None, done.stderr
    return listed[1].split(", ")


def test_the_list_above_equals_that_of_the_build(available: list[str]) -> None:
    assert set(available) <= set(TIERS), "a tier is missing in the list above"
    assert [tier for tier in TIERS if tier in available] == available, "the order differs"
    assert available[-1] == cpu_tier(), "the last one must be the default"


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_computes_the_same_bits(
    tier: str, gguf: Path, expected: dict[str, str], available: list[str]
) -> None:
    done = run(gguf, tier, 2)
    if tier in available:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {**expected, "tier": tier}
    else:
        assert done.returncode != 0, "a tier that this CPU does not support must be rejected"
        assert f"'{tier}' needs what this CPU lacks" in done.stderr


@pytest.mark.parametrize("layout", ["2bit", "1.6bit"])
@pytest.mark.parametrize("tier", ["scalar", cpu_tier()])
def test_every_layout_computes_the_same_bits(
    tier: str, layout: str, gguf: Path, expected: dict[str, str]
) -> None:
    done = run(gguf, tier, 2, layout)
    if done.returncode != 0 and tier != "scalar":
        assert f"not offered by kernel tier {tier}" in done.stderr, done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {**expected, "tier": tier}


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_every_number_of_threads_computes_the_same_bits(
    threads: int, gguf: Path, expected: dict[str, str]
) -> None:
    done = run(gguf, cpu_tier(), threads, BITEXPORT_THREADS="stock")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**expected, "tier": cpu_tier()}


def test_company_changes_no_bit(gguf: Path) -> None:
    """Busy processes decide which thread computes what, and how many threads there are."""
    alone = run(gguf, cpu_tier(), 1, as_run=True)
    assert alone.returncode == 0, alone.stderr
    with busy(len(os.sched_getaffinity(0))):
        for threads in (2, 4):
            for number in ("", "stock", "fastest"):
                done = run(gguf, cpu_tier(), threads, as_run=True, BITEXPORT_THREADS=number)
                assert (done.returncode, done.stdout) == (0, alone.stdout), (
                    f"{threads} {number} {done.stderr}"
                )


def test_an_unknown_number_of_threads_is_an_error(gguf: Path) -> None:
    done = run(gguf, cpu_tier(), 2, BITEXPORT_THREADS="4")
    assert done.returncode != 0
    assert "BITEXPORT_THREADS is '4'; expected 'stock' for all" in done.stderr


def attention_of(tier: str) -> str:
    """Which attention a tier uses; see native/kernels/attention/dispatch.cpp."""
    if tier.startswith("avx512"):
        return "AVX-512"
    if tier.startswith("avx"):
        return "AVX2"
    return "llama.cpp" if tier == "scalar" else "NEON"


def digests(gguf: Path, tier: str, **environment: str) -> dict[str, str]:
    done = run(gguf, tier, 2, as_run=True, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tiers_with_the_same_attention_compute_the_same_bits(gguf: Path, available: list[str]) -> None:
    """As users run a model, which is what docs/support.md promises."""
    found = {tier: digests(gguf, tier) for tier in available}
    for tier, each in found.items():
        first = next(other for other in available if attention_of(other) == attention_of(tier))
        assert each == {**found[first], "tier": tier}
    if {"avx2", "avx512bw"} <= found.keys():
        assert found["avx2"]["prefill"] == found["avx512bw"]["prefill"]
        assert found["avx2"]["decode"] != found["avx512bw"]["decode"], "docs/support.md says that they differ"


def test_with_the_attention_of_llama_cpp_all_tiers_compute_the_same_bits(
    gguf: Path, available: list[str]
) -> None:
    expected = digests(gguf, "scalar")
    for tier in {available[-1], "avx2"} & set(available):
        assert digests(gguf, tier, BITEXPORT_ATTENTION="stock") == {**expected, "tier": tier}
