from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.repository import EN_FR, REPOSITORY


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/resave_student.py", str(folder)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)


def test_an_old_student_gets_its_form_and_keeps_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(EN_FR, folder)
    shipped = json.loads((folder / "config.json").read_text())
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False, "head_dim": 64}
    (folder / "config.json").write_text(json.dumps(shipped | llama))
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}: BitNetForCausalLM\n"
    assert json.loads((folder / "config.json").read_text()) == shipped
    assert (folder / "model.safetensors").read_bytes() == (EN_FR / "model.safetensors").read_bytes()


def test_no_folder(tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere")
    assert done.returncode == 1
    assert "does not exist" in done.stderr
