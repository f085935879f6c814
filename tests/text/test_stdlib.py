from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bitexport.errors import UsageError
from bitexport.text.stdlib import held_out_text, is_held_out, source_files, standard_library, text_of


def write_sources(folder: Path, files: int = 60) -> Path:
    """Write a folder of small, different, quite predictable Python files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        functions = [
            f"def add_{i}_{j}(first, second):\n    return first + second * {i * j}\n"
            for j in range(i % 5 + 8)
        ]
        (folder / f"module_{i}.py").write_text("\n\n".join(functions), encoding="utf-8")
    return folder


def test_the_standard_library_is_split_without_a_leak() -> None:
    held_out, root = held_out_text(5), standard_library()
    train = [
        text_of(path) for path in source_files(root) if not is_held_out(path.relative_to(root), percent=5)
    ]
    assert not any(text in held_out for text in train if len(text) > 500)
    assert 0.01 < len(held_out) / sum(map(len, train)) < 0.15
    assert held_out_text(5) == held_out


def test_tests_and_generated_tables_are_skipped() -> None:
    names = {path.relative_to(standard_library()).as_posix() for path in source_files(standard_library())}
    assert {"json/decoder.py", "argparse.py"} <= names
    unwanted = ("site-packages/", "test/", "pydoc_data/", "encodings/", "html/entities.py", "_sysconfigdata")
    assert not [name for name in names if name.startswith(unwanted)]
    assert not [name for name in names if "/test/" in name or "/tests/" in name]


def test_the_side_of_a_file_depends_only_on_its_path(tmp_path: Path) -> None:
    here = write_sources(tmp_path / "here")
    there = tmp_path / "there"
    shutil.copytree(here, there)
    for path in sorted(there.iterdir()):  # other contents, same paths
        path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    first, second = held_out_text(20, str(here)), held_out_text(20, str(there))
    assert first == second.replace("# changed\n", "") != second
    assert is_held_out(Path("json/decoder.py"), 100)
    assert not is_held_out(Path("json/decoder.py"), 0)


def test_a_copy_counts_once(tmp_path: Path) -> None:
    folder = write_sources(tmp_path / "sources")
    for path in list(folder.iterdir()):
        copy = path.read_text(encoding="utf-8").replace("    ", "\t") + "\n\n"
        path.with_name("copy_of_" + path.name).write_text(copy, encoding="utf-8")
    text = held_out_text(50, str(folder))
    found = [text.count(f"def add_{i}_0(") for i in range(60)]
    assert set(found) == {0, 1}
    # The first of two copies decides the side.
    assert found == [is_held_out(Path(f"copy_of_module_{i}.py"), 50) for i in range(60)]


def test_declared_encodings_are_read_and_broken_files_skipped(tmp_path: Path) -> None:
    folder = write_sources(tmp_path / "sources")
    (folder / "latin.py").write_bytes("# -*- coding: latin-1 -*-\r\nname = 'Zoë'\r\n".encode("latin-1"))
    (folder / "broken.py").write_bytes(b"name = '\xff\xfe'\n")
    (folder / "empty.py").write_bytes(b"\n\n")
    assert text_of(folder / "latin.py") == "# -*- coding: latin-1 -*-\nname = 'Zoë'\n"
    assert text_of(folder / "broken.py") == ""
    held = [i for i in range(60) if is_held_out(Path(f"module_{i}.py"), 20)]
    assert held_out_text(20, str(folder)).count("_0(") == len(held)


def test_held_out_text_is_cut_at_a_line(tmp_path: Path) -> None:
    folder = str(write_sources(tmp_path / "sources"))
    full = held_out_text(20, folder)
    cut = held_out_text(20, folder, max_bytes=500)
    assert full.startswith(cut)
    assert cut.endswith("\n")
    assert 400 < len(cut.encode()) <= 500
    assert held_out_text(20, folder, max_bytes=10**9) == full


def test_too_little_text(tmp_path: Path) -> None:
    (tmp_path / "only.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(UsageError, match="give a larger text_dir"):
        held_out_text(5, str(tmp_path))
    with pytest.raises(UsageError, match="0 characters"):
        held_out_text(5, str(tmp_path / "missing"))


def test_a_folder_named_like_a_source_file_is_skipped(tmp_path: Path) -> None:
    write_sources(tmp_path / "here")
    (tmp_path / "here" / "folder.py").mkdir()
    assert all(path.is_file() for path in source_files(tmp_path / "here"))
