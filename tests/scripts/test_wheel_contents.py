"""A wheel contains the training code as bitexport.train, and no top-level package called train."""

from __future__ import annotations

import sys
from pathlib import Path

import bitexport.train
from tests.support.repository import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_the_only_package_of_a_wheel_is_bitexport() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["scikit-build"]["wheel"]["packages"] == ["bitexport"]


def test_training_is_a_part_of_bitexport() -> None:
    package = REPOSITORY / "bitexport" / "train"
    assert Path(bitexport.train.__file__ or "").parent == package
    if package.is_symlink():  # in a source distribution it is a folder
        assert package.resolve() == REPOSITORY / "train"
        assert not package.readlink().is_absolute()  # it must work in a copy, too
    folders = {path.parent for path in package.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
