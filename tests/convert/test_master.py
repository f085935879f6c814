"""``--master``: float weights that the model quantizes, whatever config.json says.

So are the ``prequantized`` revisions of Falcon-E, from which onebitllms fine-tunes: config.json is that of an
ordinary float Llama. Nothing in the folder tells them from a float model, therefore the user has to.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitexport.convert import convert
from bitexport.errors import BitexportError, CheckpointError, UsageError
from tests.support.gguf_files import tensors_of
from tests.support.tiny_models import save_checkpoint, tiny_model


@pytest.mark.parametrize(
    "quantization",
    [
        None,  # as Falcon-E's revision
        # as onebitllms writes when packing
        {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]},
        {"quant_method": "own"},
    ],
)
def test_the_option_that_the_message_names(
    tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]], quantization: Any
) -> None:
    model = tiny_model(architecture="llama", tied=False)
    declared = save_checkpoint(model, tmp_path / "declared")
    folder = save_checkpoint(model, tmp_path / "c", config_changes={"quantization_config": quantization})
    with pytest.raises(
        BitexportError, match=r"master weights, (which the model quantizes, convert )?with --master"
    ):
        convert(folder, tmp_path / "x.gguf", embed_type="f16")
    done = run_cli("convert", folder, tmp_path / "x.gguf", "--embed-type", "f16", "--master")
    assert done.returncode == 0, done.stderr
    convert(declared, tmp_path / "y.gguf", embed_type="f16")
    assert tensors_of(tmp_path / "x.gguf") == tensors_of(tmp_path / "y.gguf")


@pytest.mark.parametrize("quantization", [None, {"quant_method": "bitnet"}])
def test_parity_without_editing_the_config(tmp_path: Path, quantization: Any) -> None:
    from bitexport.parity import parity

    model = tiny_model(architecture="llama", tied=False)
    folder = save_checkpoint(model, tmp_path / "c", config_changes={"quantization_config": quantization})
    convert(folder, tmp_path / "x.gguf", embed_type="f16", master=True)
    assert parity(folder, tmp_path / "x.gguf", prompts=["def add(a, b):"]).passed


def test_where_it_does_not_belong(tmp_path: Path, checkpoint_of: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"--master with '.*weight_scale'.*convert it without --master"):
        convert(checkpoint_of("packed-multiply"), tmp_path / "x.gguf", master=True)
    convert(checkpoint_of("packed-multiply"), tmp_path / "x.gguf", embed_type="f16")
    with pytest.raises(UsageError, match="--master with --float"):
        convert(checkpoint_of(), tmp_path / "y.gguf", master=True, all_float=True)
    ternary = save_checkpoint(tiny_model(architecture="llama"), tmp_path / "t", "pre-dequantized")
    report = convert(ternary, tmp_path / "y.gguf", embed_type="f16", master=True)
    assert any("written unchanged" in text for text in report.warnings)
