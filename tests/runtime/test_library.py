"""Our libraries are found, bound once, and never mixed with others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.errors import NativeLibraryError
from bitexport.runtime import library
from bitexport.system import native_files
from tests.support.repository import REPOSITORY


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real libllama in another folder."""
    folder = tmp_path_factory.mktemp("elsewhere") / "lib"
    shutil.copytree(native_files.find_library_dir(), folder)
    return folder


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "BITEXPORT_DEBUG": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_binding_twice_gives_the_same_module_and_leaves_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "/somebody/else's")
    module = library.bind()
    assert library.bind() is module
    assert os.environ["LLAMA_CPP_LIB_PATH"] == "/somebody/else's"


def test_bound_library_is_ours() -> None:
    library.bind()
    maps = Path("/proc/self/maps").read_text()
    assert str(native_files.library_file("llama").resolve()) in maps


def test_named_folder_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITEXPORT_LIB_DIR", str(tmp_path))
    with pytest.raises(NativeLibraryError, match=r"BITEXPORT_LIB_DIR is .* which does not contain libllama"):
        native_files.find_library_dir()


def test_no_library_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITEXPORT_LIB_DIR", raising=False)
    monkeypatch.setattr(native_files, "_PACKAGE", tmp_path / "bitexport")
    with pytest.raises(NativeLibraryError, match="make native"):
        native_files.find_library_dir()


def test_damaged_library(foreign: Path, tmp_path: Path) -> None:
    broken = tmp_path / "lib"
    shutil.copytree(foreign, broken)
    (broken / "libllama.so").write_bytes(b"not a library")
    result = run_python(
        "from bitexport.cli import errors\n"
        "from bitexport.runtime.library import bind\n"
        "try: bind()\n"
        "except Exception as error: raise SystemExit(errors.report(error))",
        BITEXPORT_LIB_DIR=str(broken),
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "cannot load the libraries" in result.stderr


@pytest.mark.parametrize(
    "how",
    [
        "import ctypes; ctypes.CDLL({path!r} + '/libllama.so')",
        "import ctypes; ctypes.CDLL({path!r} + '/libggml-base.so')",
        "import llama_cpp",
    ],
)
def test_a_foreign_library_that_is_already_loaded(
    how: str, foreign: Path, gguf_of: Callable[..., Path]
) -> None:
    model = gguf_of("packed-multiply")
    code = how.format(path=str(foreign)) + (
        f"\nfrom bitexport.cli import main\nmain(['run', {str(model)!r}, '--ctx', '8', '--prompt', 'x'])"
    )
    result = run_python(code, LLAMA_CPP_LIB_PATH=str(foreign))
    assert result.returncode == 1
    assert result.stdout.strip() == ""
    assert result.stderr.count("\n") == 1
    assert str(foreign) in result.stderr
    assert "already loaded in this process" in result.stderr


def test_a_foreign_library_also_prevents_quantizing(foreign: Path) -> None:
    result = run_python(
        f"import ctypes; ctypes.CDLL({str(foreign)!r} + '/libggml-base.so')\n"
        "import numpy as np\n"
        "from bitexport.runtime.ggml import quantize\n"
        "quantize(np.ones((1, 32), np.float32), 'q8_0')"
    )
    assert "NativeLibraryError" in result.stderr
    assert str(foreign) in result.stderr
