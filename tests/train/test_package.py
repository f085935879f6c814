"""``bitexport.train`` offers three names and imports nothing before one is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bitexport.train


def test_the_public_names() -> None:
    from bitexport.train import TrainConfig, load_config, train

    assert TrainConfig.__module__ == load_config.__module__ == "bitexport.train.config"
    assert train.__module__ == "bitexport.train.stages"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = bitexport.train.trian


def test_packing_does_not_load_the_trainer() -> None:
    script = (
        "import sys, bitexport.train.student.pack\n"
        "loaded = {'transformers.trainer', 'bitexport.train.config', 'bitexport.train.stages'}\n"
        "assert not loaded & sys.modules.keys(), loaded & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
