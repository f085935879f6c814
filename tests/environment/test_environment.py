"""What ``doctor --env`` reports about this machine, and about machines that lack something."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest

from bitexport.environment import PROBES, Check, build, environment, frameworks, hardware, packages
from bitexport.system.machine import memory_limit
from tests.support.repository import REPOSITORY

RunCli = Callable[..., CompletedProcess[str]]


def only(checks: list[Check]) -> Check:
    (check,) = checks
    return check


def test_this_machine_can_do_what_the_tests_need(run_cli: RunCli) -> None:
    done = run_cli("doctor", "--env", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["problems"] == []
    checks = {check["name"]: check for check in report["checks"]}
    names = [
        "python",
        "packages",
        "compiler",
        "cmake",
        "kernels",
        "cpu",
        "threads",
        "memory",
        "torch",
        "accelerator",
    ]
    for name in (*names, "packages [train]", "native library", "disk here", "disk for temporary files"):
        assert checks[name]["value"], name
        assert checks[name]["meaning"].endswith("."), name
        assert bool(checks[name]["advice"]) == (checks[name]["status"] != "ok"), name
    assert "gguf 0.19.0" in checks["packages"]["value"]
    assert "datasets" in checks["packages [train]"]["value"]


def test_a_missing_library_is_a_problem(run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("doctor", "--env", env={"BITEXPORT_LIB_DIR": str(tmp_path)})
    assert done.returncode == 3
    assert "lacks something that bitexport needs: native library" in done.stderr
    assert f"problem  native library: BITEXPORT_LIB_DIR is {tmp_path}, which does not contain" in done.stdout
    assert "\n         What to do: give the folder of bitexport's libraries, or unset it\n" in done.stdout
    assert "\nok       torch: " in done.stdout, "the checks after it still run"
    assert done.stdout.splitlines()[-1].endswith(" warnings, 1 problem")


@pytest.mark.parametrize(
    ("tier", "status", "words"),
    [
        ("warp", "problem", "kernel tier 'warp' is unknown"),
        ("scalar", "warning", "scalar, weights in memory as"),
    ],
)
def test_a_forced_tier(monkeypatch: pytest.MonkeyPatch, tier: str, status: str, words: str) -> None:
    monkeypatch.setenv("BITEXPORT_TIER", tier)
    library, kernels = build.check_native()
    assert library.status == "ok"
    assert kernels.status == status
    assert words in kernels.value
    assert kernels.advice


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no checkpoint given; name its folder, or give --env"),
        (("--env", "ckpt"), "--env examines the machine; it takes no checkpoint"),
        (("--env", "--prompt", "x"), "takes no checkpoint, file, revision, prompt or text"),
    ],
)
def test_examines_either_a_model_or_the_machine(
    run_cli: RunCli, arguments: tuple[str, ...], words: str
) -> None:
    done = run_cli("doctor", *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_torch_and_gguf_are_not_needed_to_report_that_they_are_missing() -> None:
    program = (
        "import sys; import bitexport.environment\n"
        "print([name for name in ('torch', 'gguf', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_failing_probe_does_not_hide_the_others() -> None:
    def broken() -> list[Check]:
        raise PermissionError("/proc is closed")

    report = environment([("cpu", broken), *(probe for probe in PROBES if probe[0] == "python")])
    assert [check.status for check in report.checks] == ["problem", "ok"]
    assert "/proc is closed" in report.checks[0].value


def test_a_compiler_that_is_missing_or_too_old(tmp_path: Path) -> None:
    missing = only(build.check_compiler("no-such-compiler -O2"))
    assert (missing.status, missing.value) == ("warning", "no-such-compiler -O2 not found")
    old = tmp_path / "c++"
    old.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "old 4.8" && exit 0\necho "what is c++17" >&2\nexit 1\n'
    )
    old.chmod(0o755)
    found = only(build.check_compiler(str(old)))
    assert (found.status, found.value) == ("warning", "old 4.8, cannot compile C++17: what is c++17")


@pytest.mark.parametrize(("version", "status"), [("3.20.9", "warning"), ("3.21.0", "ok"), ("4.1.2", "ok")])
def test_cmake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, status: str) -> None:
    program = tmp_path / "cmake"
    program.write_text(f"#!/bin/sh\necho cmake version {version}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert only(build.check_cmake()).status == status
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert only(build.check_cmake()).value == "not found"


def test_a_library_for_another_cpu() -> None:
    """One that crashes, one that would crash, and one that leaves instructions unused."""
    died = only(build.check_native("import os, signal; os.kill(os.getpid(), signal.SIGILL)"))
    assert died.status == "problem"
    assert "illegal instruction" in died.value
    assert "make clean native" in died.advice
    found = {
        "folder": "/lib",
        "compiled": "CPU : AVX2 = 1 | AVX512 = 1 | REPACK = 1 |",
        "tier": "avx2",
        "layout": "2bit",
    }
    probe = f"print({json.dumps(json.dumps(found))})"
    for flags, status, words in (
        ({"avx2"}, "problem", "this CPU lacks AVX512"),
        ({"avx2", "avx512f"}, "ok", "for AVX2 AVX512"),
        ({"avx2", "avx512f", "amx_int8"}, "warning", "leave AMX_INT8 unused"),
        (set(), "ok", "for AVX2 AVX512"),
    ):
        library, kernels = build.check_native(probe, frozenset(flags))
        assert library.status == status
        assert words in library.value + library.meaning
        assert kernels.status == "ok"
    found["folder"] = "/site-packages/bitexport/lib"
    wheel, _ = build.check_native(
        f"print({json.dumps(json.dumps(found))})", frozenset({"avx2", "avx512f", "sve"})
    )
    assert (wheel.status, "leave SVE unused" in wheel.meaning) == ("ok", True)
    broken = only(build.check_native("raise ImportError('numpy is broken')"))
    assert "numpy is broken" in broken.value


def test_packages_against_the_requirements() -> None:
    needed, parity, wandb = packages.check_packages(
        ["numpy>=2", "no-such-package==1.0", 'torch==1.0; extra == "parity"', 'pytest>=1; extra == "dev"',
         'tomli>=2; python_version < "3.0"', 'bitexport[plot]; extra == "parity"']
    )  # fmt: skip
    assert (needed.status, needed.name) == ("problem", "packages")
    assert "no-such-package (not installed)" in needed.value
    assert needed.advice.endswith("which installs no-such-package==1.0")
    assert (parity.status, parity.name) == ("warning", "packages [parity]")
    assert "pip install 'bitexport[parity]'" in parity.advice
    assert wandb.status == "ok"


@pytest.mark.parametrize(
    ("versions", "fits", "does_not"),
    [
        ("==2.13.0", ["2.13.0", "2.13.0+cpu", "2.13"], ["2.13.1", "2.1.30"]),
        (">=0.23,<0.24", ["0.23", "0.23.9"], ["0.24", "0.24.0", "0.3", "1.0"]),
        (">=2.2", ["2.2", "2.10"], ["2.1.9"]),
        ("~=1.4", ["1.4", "1.9"], ["2.0", "1.3"]),
        ("", ["0.1"], []),
    ],
)
def test_versions(versions: str, fits: list[str], does_not: list[str]) -> None:
    requirement = packages.parse(f"some-package{versions}")
    assert requirement is not None
    assert all(requirement.accepts(version) for version in fits)
    assert not any(requirement.accepts(version) for version in does_not)


def test_minimum_versions_match_the_project_files() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert f'requires-python = "{packages.MINIMUM_PYTHON}"' in text
    lists = (REPOSITORY / "native" / "CMakeLists.txt").read_text()
    assert "cmake_minimum_required(VERSION {}.{})".format(*build.MINIMUM_CMAKE) in lists


def test_memory_is_limited_by_the_container() -> None:
    enough = only(hardware.check_memory(16 << 30, 1 << 62))
    assert (enough.status, enough.value) == ("ok", "16.0 GiB available")
    assert "at most 1,074 million parameters" in enough.meaning
    short = only(hardware.check_memory(16 << 30, 1 << 30))
    assert (short.status, short.value) == (
        "warning",
        "1.0 GiB left in the container, 16.0 GiB on the machine",
    )


def test_memory_limits_under_cgroup_v1_and_v2(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("100\n")
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    assert memory_limit(tmp_path) == 900
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("7000\n")
    assert memory_limit(tmp_path) == 0


def test_the_threads_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitexport.runtime.ggml.processors", lambda: 4)
    monkeypatch.setattr("bitexport.runtime.threads.cpu_quota", lambda: 2)
    found = only(hardware.check_threads())
    assert found.status == "ok"
    assert found.value.endswith("2 allowed in this container")


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"disk here": tmp_path}
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=6 << 30))
    assert only(hardware.check_disk(places)).status == "ok"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    found = only(hardware.check_disk(places))
    assert (found.status, found.value) == ("warning", f"1.0 GiB free in {tmp_path}")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "not writable" in only(hardware.check_disk(places)).value


def test_missing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert only(frameworks.check_torch()).value == "not installed"
    assert only(frameworks.check_accelerator()).value == "unknown without torch"


def test_accelerators() -> None:
    def torch(built: str | None, devices: int = 0, bf16: bool = True) -> Any:
        device = SimpleNamespace(name="H200", total_memory=141 << 30, major=9, minor=0)
        cuda = SimpleNamespace(
            is_available=lambda: devices > 0, device_count=lambda: devices, is_bf16_supported=lambda: bf16,
            get_device_properties=lambda _: device,
        )  # fmt: skip
        return SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=built), backends=SimpleNamespace())

    assert only(frameworks.check_accelerator(torch(None), driver=False)).value == "none"
    for built, words in ((None, "built without CUDA"), ("12.8", "built for CUDA 12.8 and cannot use it")):
        found = only(frameworks.check_accelerator(torch(built), driver=True))
        assert found.status == "warning"
        assert words in found.value
    two = only(frameworks.check_accelerator(torch("12.8", 2), driver=True))
    assert (two.status, two.value.count("H200, 141.0 GiB, compute 9.0")) == ("ok", 2)
    old = only(frameworks.check_accelerator(torch("12.8", 1, bf16=False), driver=True))
    assert (old.status, old.advice) == ("warning", 'train with precision = "float32"')
