"""The choice among several libggml-cpu, as wheels have them."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.errors import NativeLibraryError
from bitexport.runtime.levels import _usable, cpu_library_file
from bitexport.system.native_files import find_library_dir
from scripts.build_wheels import LEVELS
from tests.support.repository import REPOSITORY

HERE = LEVELS[platform.machine()]
#: What the highest level of a CPU shows in /proc/cpuinfo.
FLAGS = {
    "sse42": "sse4_2",
    "avx2": "avx2",
    "avx512": "avx512bw",
    "avx512vnni": "avx512_vbmi2",
    "amx": "amx_int8",
}


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries laid out as in a wheel: every usable level has this machine's own libggml-cpu."""
    folder = tmp_path_factory.mktemp("levels") / "lib"
    ours = find_library_dir()
    shutil.copytree(ours, folder)
    for name in _usable(ours):
        level = folder / "levels" / name
        level.mkdir(parents=True)
        shutil.copy(folder / "libggml-cpu.so", level)
        # a wheel's has an RPATH instead
        (level / "libggml-base.so").symlink_to(folder / "libggml-base.so")
    (folder / "libggml-cpu.so").unlink()
    return folder


def test_the_levels_are_those_of_the_build() -> None:
    text = (REPOSITORY / "native" / "levels" / "levels.cmake").read_text()
    lists = re.findall(r"set\(BITEXPORT_LEVELS ([\w ]+)\)", text)
    assert [tuple(names.split()) for names in lists] == list(LEVELS.values())


def test_the_usable_levels_are_what_the_cpu_has() -> None:
    usable = _usable(find_library_dir())
    assert usable == list(HERE[: len(usable)])
    assert usable
    if platform.machine() == "x86_64":
        flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        assert flags is not None
        has = flags[1].split()
        assert [name for name in HERE if FLAGS[name] in has] == usable


def test_the_best_level_is_chosen(levels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITEXPORT_LIB_DIR", str(levels))
    monkeypatch.delenv("BITEXPORT_LEVEL", raising=False)
    usable = _usable(find_library_dir())
    assert cpu_library_file() == levels / "levels" / usable[-1] / "libggml-cpu.so"
    monkeypatch.setenv("BITEXPORT_LEVEL", usable[0])
    assert cpu_library_file() == levels / "levels" / usable[0] / "libggml-cpu.so"
    monkeypatch.setenv("BITEXPORT_LEVEL", "warp")
    with pytest.raises(NativeLibraryError, match=f"BITEXPORT_LEVEL is warp; .*: {', '.join(usable)}"):
        cpu_library_file()


def test_a_cpu_that_can_run_none(levels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITEXPORT_LIB_DIR", str(levels))
    monkeypatch.setattr("bitexport.runtime.levels._usable", lambda _: [])
    with pytest.raises(NativeLibraryError, match=r"SSE4\.2"):
        cpu_library_file()


def test_a_model_runs_on_it(
    levels: Path, gguf_of: Callable[..., Path], run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    options = ("-p", "hello", "-n", "8", "--temperature", "0", "-c", "32")
    command = ("run", str(gguf_of("packed-multiply")), *options)
    ordinary = run_cli(*command)
    chosen = run_cli(*command, env={"BITEXPORT_LIB_DIR": str(levels)})
    assert (chosen.returncode, chosen.stdout) == (0, ordinary.stdout)
    refused = run_cli(*command, env={"BITEXPORT_LIB_DIR": str(levels), "BITEXPORT_LEVEL": "warp"})
    assert refused.returncode == 1
    assert "BITEXPORT_LEVEL is warp" in refused.stderr
