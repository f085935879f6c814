"""Every model of tests/support/upstream_models.py, made once, and float files by llama.cpp's converter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitexport.system.native_files import find_conversion_dir
from bitexport.upstream.run import OFFLINE
from tests.support.repository import REPOSITORY
from tests.support.upstream_models import MODELS, made
from tests.upstream.changed import CHANGED


@dataclass(frozen=True)
class Made:
    """One model: its ternary checkpoint, its recipe, llama.cpp's float32 file of it, its ternary tensors."""

    checkpoint: Path
    recipe: Path
    reference: Path
    ternary: set[str]


@dataclass(frozen=True)
class Changed:
    """A changed checkpoint, and what the converter says about it."""

    checkpoint: Path
    recipe: Path


@pytest.fixture(scope="session")
def changed_models(upstream_models: dict[str, Made]) -> dict[str, Changed]:
    root = next(iter(upstream_models.values())).recipe.parents[1]
    return {name: Changed(root / name / "checkpoint", root / name / "recipe") for name in CHANGED}


@pytest.fixture(scope="session")
def upstream_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("upstream")
    found, jobs = {}, []
    for number, name in enumerate(MODELS):
        folder = root / str(number)
        ternary, plain, chosen = made(name, folder)
        found[name] = Made(ternary, folder / "recipe", folder / "reference.gguf", chosen)
        found[name].recipe.mkdir()
        jobs.append(
            {
                "float": str(plain),
                "reference": str(found[name].reference),
                "ternary": str(ternary),
                "recipe": str(found[name].recipe),
            }
        )
    for name, (base, change) in CHANGED.items():
        checkpoint, recipe = root / name / "checkpoint", root / name / "recipe"
        shutil.copytree(found[base].checkpoint, checkpoint)
        change(checkpoint)
        recipe.mkdir()
        jobs.append({"ternary": str(checkpoint), "recipe": str(recipe)})
    (root / "jobs.json").write_text(json.dumps(jobs))
    source = find_conversion_dir()
    paths = os.pathsep.join(map(str, (source / "gguf-py", source, REPOSITORY)))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.programs.upstream_reference", str(root / "jobs.json")],
        env={**os.environ, **OFFLINE, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}
    return found
