"""Damaged checkpoints and wrong usage on the real command line: one line, a code, nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from tests.support.cli import one_line
from tests.support.damaged_checkpoints import (
    config,
    corrupt_header,
    huge_header,
    index,
    second_shard,
    tensors,
    truncate,
)

RunCli = Callable[..., CompletedProcess[str]]
Checkpoints = Callable[..., Path]

LAYER = "model.layers.0.mlp.up_proj"

# name -> packing, options of the checkpoint, damage, what stderr must say
CASES: dict[str, tuple[str, dict[str, Any], Callable[[Path], object], str]] = {
    "truncated shard": ("master", {}, truncate, r"truncated"),
    "corrupt header": ("master", {}, corrupt_header, r"not valid JSON"),
    "huge header": ("master", {}, huge_header, r"claims 1152921504606846976 bytes"),
    "missing shard": (
        "master",
        {"shards": 2},
        lambda f: second_shard(f).unlink(),
        r"shard 'model-00002\S*' is missing",
    ),
    "truncated second shard": (
        "master",
        {"shards": 2},
        lambda f: os.truncate(second_shard(f), 1000),
        r"model-00002",
    ),
    "index outside the folder": (
        "master",
        {"shards": 2},
        index(lambda m: m.update({"model.norm.weight": "../../../etc/passwd"})),
        r"'../../../etc/passwd' points outside the folder",
    ),
    "index with a tensor no shard has": (
        "master",
        {"shards": 2},
        index(lambda m: m.update({"model.extra": "model-00001-of-00002.safetensors"})),
        r"'model.extra' is not in its shard",
    ),
    "unclaimed tensor": (
        "master",
        {},
        tensors(lambda t: t.update({"model.layers.0.mlp.extra.weight": torch.ones(4)})),
        r"'model.layers.0.mlp.extra.weight' \[4\] does not belong to BitNet b1.58 and would be dropped",
    ),
    "a layer too many": (
        "master",
        {},
        config(lambda c: c.update(num_hidden_layers=1)),
        r"'model.layers.1.*does not belong to BitNet b1.58 and would be dropped",
    ),
    "a layer too few": (
        "master",
        {},
        config(lambda c: c.update(num_hidden_layers=3)),
        r"'model.layers.2.*is missing",
    ),
    "missing tensor": (
        "master",
        {},
        tensors(lambda t: t.pop("model.norm.weight")),
        r"'model.norm.weight' is missing",
    ),
    "missing head": (
        "master",
        {},
        config(lambda c: c.update(tie_word_embeddings=False)),
        r"'lm_head.weight' is missing",
    ),
    "missing scale": (
        "packed-divide",
        {},
        tensors(lambda t: t.pop(f"{LAYER}.weight_scale")),
        rf"'{LAYER}.weight_scale' is missing",
    ),
    "wrong shape": (
        "master",
        {},
        tensors(lambda t: t.update({f"{LAYER}.weight": torch.ones(256, 512)})),
        rf"'{LAYER}.weight' has shape \[256, 512\]; config.json implies \[512, 256\]",
    ),
    "wrong packed shape": (
        "packed-multiply",
        {},
        tensors(lambda t: t.update({f"{LAYER}.weight": torch.zeros(512, 64, dtype=torch.uint8)})),
        r"has shape \[512, 64\]; config.json implies \[128, 256\]",
    ),
    "wrong dtype": (
        "master",
        {},
        tensors(lambda t: t.update({"model.norm.weight": torch.ones(256, dtype=torch.int32)})),
        r"'model.norm.weight' has dtype I32",
    ),
    "NaN in master weights": (
        "master",
        {},
        tensors(lambda t: t[f"{LAYER}.weight"].__setitem__((3, 4), float("nan"))),
        rf"'{LAYER}.weight' holds nan",
    ),
    "infinity in a norm": (
        "packed-divide",
        {},
        tensors(lambda t: t["model.norm.weight"].__setitem__(3, float("inf"))),
        r"'model.norm.weight' holds inf",
    ),
    "NaN in the embeddings": (
        "packed-divide",
        {},
        tensors(lambda t: t["model.embed_tokens.weight"].__setitem__((7, 7), float("nan"))),
        r"'model.embed_tokens.weight' holds nan",
    ),
    "code of three": (
        "packed-multiply",
        {},
        tensors(lambda t: t[f"{LAYER}.weight"].__setitem__((5, 6), 0b01110101)),
        rf"'{LAYER}.weight' holds a two-bit value of 3",
    ),
    "scale of zero": (
        "packed-multiply",
        {},
        tensors(lambda t: t[f"{LAYER}.weight_scale"].zero_()),
        rf"'{LAYER}.weight_scale' gives a scale of 0.0",
    ),
    "scale that is NaN": (
        "packed-divide",
        {},
        tensors(lambda t: t[f"{LAYER}.weight_scale"].fill_(float("nan"))),
        rf"'{LAYER}.weight_scale' holds nan",
    ),
    "negative scale": (
        "packed-divide",
        {},
        tensors(lambda t: t[f"{LAYER}.weight_scale"].fill_(-1.0)),
        rf"'{LAYER}.weight_scale' gives a scale of -1.0",
    ),
    "unknown architecture": (
        "master",
        {},
        config(lambda c: c.update(architectures=["GPT9ForCausalLM"])),
        r"unknown architecture 'GPT9ForCausalLM'; expected one of BitNetForCausalLM",
    ),
    "unknown packing": (
        "master",
        {},
        config(lambda c: c["quantization_config"].update(linear_class="superbitlinear")),
        r"unknown packing: linear_class 'superbitlinear'",
    ),
    "unknown quantization": (
        "master",
        {},
        config(lambda c: c["quantization_config"].update(quant_method="awq")),
        r"quant_method 'awq' is not ternary",
    ),
    "no quantization": (
        "master",
        {},
        config(lambda c: c.pop("quantization_config")),
        r"no quantization_config",
    ),
    "packed, said to be master": (
        "packed-multiply",
        {},
        config(lambda c: c["quantization_config"].update(quantization_mode="online")),
        r"has dtype U8, but quantization_config says online",
    ),
    "absurdly many layers": (
        "master",
        {},
        config(lambda c: c.update(num_hidden_layers=2**31 - 1)),
        r"num_hidden_layers is 2147483647; expected at most 512",
    ),
    "absurdly large RoPE base": (
        "master",
        {},
        config(lambda c: c.update(rope_parameters={"rope_theta": 1e39})),
        r"rope_theta is 1e\+39",
    ),
    "another activation": ("master", {}, config(lambda c: c.update(hidden_act="gelu")), r"hidden_act 'gelu'"),
    "config that is no JSON": (
        "master",
        {},
        lambda f: (f / "config.json").write_text("{"),
        r"config.json: not valid JSON",
    ),
    "no tokenizer": ("master", {}, lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer.json"),
    "vocabulary too long": (
        "master",
        {},
        config(lambda c: c.update(vocab_size=100)),
        r"embed_tokens.*config.json implies",
    ),
    "no weights": ("master", {}, lambda f: (f / "model.safetensors").unlink(), r"no model.safetensors"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_left(
    tmp_path: Path, empty_folder: Path, checkpoint_of: Checkpoints, run_cli: RunCli, name: str
) -> None:
    packing, options, damage, message = CASES[name]
    shutil.copytree(checkpoint_of(packing, **options), tmp_path / "c")
    damage(tmp_path / "c")
    done = run_cli("convert", tmp_path / "c", empty_folder / "x.gguf", "--embed-type", "f16")
    line = one_line(done, 1)
    assert line.startswith("error: ")
    assert re.search(message, line), line


@pytest.mark.parametrize(
    "arguments", [("--type", "q4_0"), ("--embed-type", "tq2_0"), ("--no-such-option",), ("extra", "words")]
)
def test_wrong_usage(
    empty_folder: Path, checkpoint_of: Checkpoints, run_cli: RunCli, arguments: tuple[str, ...]
) -> None:
    line = one_line(run_cli("convert", checkpoint_of(), empty_folder / "x.gguf", *arguments), 2)
    assert "--help" in line


def test_no_checkpoint(tmp_path: Path, empty_folder: Path, run_cli: RunCli) -> None:
    line = one_line(run_cli("convert", tmp_path / "none", empty_folder / "x.gguf"), 1)
    assert "does not exist; expected a checkpoint folder" in line


def test_no_folder_for_the_output(empty_folder: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    line = one_line(run_cli("convert", checkpoint_of(), empty_folder / "none" / "x.gguf"), 1)
    assert "does not exist; create it first" in line


def test_debug_shows_the_traceback(tmp_path: Path, empty_folder: Path, run_cli: RunCli) -> None:
    done = run_cli("convert", tmp_path / "none", empty_folder / "x.gguf", env={"BITEXPORT_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_json_errors_leave_stdout_empty(tmp_path: Path, empty_folder: Path, run_cli: RunCli) -> None:
    one_line(run_cli("convert", tmp_path / "none", empty_folder / "x.gguf", "--json"), 1)
