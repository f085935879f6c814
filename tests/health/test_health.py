"""Signs of a bad checkpoint: each planted defect is found, and sound checkpoints show none."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch

from bitexport.convert import convert
from bitexport.errors import CheckpointError
from bitexport.health import SIGNS, Finding, Health
from bitexport.inspect import inspect
from bitexport.ternary import GroupedTernary, TernaryTensor
from tests.support.cli import one_line
from tests.support.damaged_checkpoints import edited, resaved
from tests.support.gguf_files import changed
from tests.support.repository import TINY_PYTHON
from tests.support.tiny_models import Shape, tiny_checkpoint, tiny_tokenizer

SHIPPED = TINY_PYTHON
RunCli = Callable[..., CompletedProcess[str]]
Checkpoints = Callable[..., Path]
Tensors = dict[str, torch.Tensor]

LAYER = "model.layers.{}.{}.weight"
MODULES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def zero_mlps(tensors: Tensors) -> None:
    for layer in (0, 1):
        for module in MODULES[4:]:
            tensors[LAYER.format(layer, module)].zero_()


def plant_nan(tensors: Tensors) -> None:
    tensors[LAYER.format(1, "mlp.up_proj")][3, 4] = float("nan")


def repeat_a_layer(tensors: Tensors) -> None:
    for module in MODULES:
        tensors[LAYER.format(1, module)].copy_(tensors[LAYER.format(0, module)])


def kill_a_row(tensors: Tensors) -> None:
    tensors[LAYER.format(0, "self_attn.o_proj")][7].zero_()


def kill_columns(tensors: Tensors) -> None:
    tensors[LAYER.format(1, "mlp.down_proj")][:, 3:5].zero_()


def shrink(tensors: Tensors) -> None:
    tensors[LAYER.format(0, "mlp.up_proj")].mul_(2e-4)


def one_bit(tensors: Tensors) -> None:
    tensors[LAYER.format(0, "self_attn.v_proj")].sign_()


def sparse(tensors: Tensors) -> None:
    tensors[LAYER.format(0, "self_attn.v_proj")].mul_(20).pow_(15)


def zero_norm(tensors: Tensors) -> None:
    tensors["model.norm.weight"].zero_()


#: The defect to plant, the sign that must be found, at how many places, and part of the message.
PLANTED: list[tuple[Callable[[Tensors], None], str, int, str]] = [
    (zero_mlps, "all-zero", 6, "6 tensors, such as 'model.layers.0.mlp.down_proj.weight' (all 131,072"),
    (repeat_a_layer, "identical-tensors", 7, "the same trits and scale as 'model.layers.0.mlp.down_proj"),
    (kill_a_row, "dead-rows", 1, "'model.layers.0.self_attn.o_proj.weight': 1 of 256 rows are all zeros"),
    (kill_columns, "dead-columns", 1, "2 of 512 columns"),
    (shrink, "scale-at-floor", 1, "scale 1e-05; expected more than 1e-5"),
    (one_bit, "zero-fraction", 1, "0.000 of the weights are zero; expected 0.15 to 0.75"),
    (sparse, "zero-fraction", 1, "of the weights are zero; expected 0.15 to 0.75"),
    (zero_norm, "all-zero", 1, "'model.norm.weight': all 256 values are zero"),
]


def warnings_of(findings: list[Finding] | None) -> list[Finding]:
    assert findings is not None
    return [finding for finding in findings if finding.level == "warning"]


@pytest.mark.parametrize(("plant", "name", "count", "words"), PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_a_planted_defect_is_named(
    tmp_path: Path,
    checkpoint_of: Checkpoints,
    plant: Callable[[Tensors], None],
    name: str,
    count: int,
    words: str,
) -> None:
    folder = resaved(checkpoint_of(), tmp_path / "c", plant)
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    of_convert = warnings_of(report.health)
    (finding,) = [f for f in of_convert if f.name == name]
    assert finding.count == len(finding.places) == count
    assert words in finding.message
    assert finding.message.endswith(f"[{name}]")
    assert finding.message in report.warnings
    # without converting, and in the file made from it
    assert warnings_of(inspect(folder, health=True).health) == of_convert
    of_file = warnings_of(inspect(tmp_path / "x.gguf", health=True).health)
    assert [(f.name, f.count) for f in of_file if f.name == name] == [(name, count)]
    with pytest.raises(CheckpointError, match=rf"--strict: .*nothing is written: .*{name} "):
        convert(folder, tmp_path / "y.gguf", embed_type="f16", strict=True)
    assert not (tmp_path / "y.gguf").exists()


def test_nan_is_always_refused_and_shown_by_inspect(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    folder = resaved(checkpoint_of(), tmp_path / "c", plant_nan)
    with pytest.raises(CheckpointError, match="holds nan"):
        convert(folder, tmp_path / "x.gguf")
    (finding,) = warnings_of(inspect(folder, health=True).health)
    assert (finding.name, finding.places) == ("not-finite", ["'model.layers.1.mlp.up_proj.weight'"])


def test_a_scale_of_zero(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    name = LAYER.format(1, "mlp.up_proj") + "_scale"
    folder = resaved(checkpoint_of("packed-multiply"), tmp_path / "c", lambda t: t[name].zero_())
    with pytest.raises(CheckpointError, match=r"gives a scale of 0\.0"):
        convert(folder, tmp_path / "x.gguf")
    assert [f.name for f in warnings_of(inspect(folder, health=True).health)] == ["bad-scale"]


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({"global_step": 0, "best_metric": None}, "never-trained"),
        ({"global_step": 9, "best_metric": float("inf")}, "loss-not-finite"),
        ({"global_step": 9, "log_history": [{"loss": 1.5}, {"loss": float("nan")}]}, "loss-not-finite"),
    ],
)
def test_trainer_state(tmp_path: Path, checkpoint_of: Checkpoints, state: dict[str, Any], name: str) -> None:
    shutil.copytree(checkpoint_of(), tmp_path / "c")
    (tmp_path / "c" / "trainer_state.json").write_text(json.dumps(state))
    report = convert(tmp_path / "c", tmp_path / "x.gguf", embed_type="f16")
    (finding,) = warnings_of(report.health)
    assert (finding.name, finding.places) == (name, ["'trainer_state.json'"])
    with pytest.raises(CheckpointError, match=name):
        convert(tmp_path / "c", tmp_path / "y.gguf", strict=True)


def test_a_good_trainer_state(tmp_path: Path, checkpoint_of: Checkpoints) -> None:
    shutil.copytree(checkpoint_of(), tmp_path / "c")
    state = {"global_step": 9, "best_metric": 2.5, "log_history": [{"loss": float("nan")}, {"loss": 1.0}]}
    (tmp_path / "c" / "trainer_state.json").write_text(json.dumps(state))
    assert warnings_of(inspect(tmp_path / "c", health=True).health) == []


def test_a_vocabulary_longer_than_the_tokenizer_is_padding(
    tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    report = convert(checkpoint_of(), tmp_path / "x.gguf", embed_type="f16", strict=True)
    (finding,) = report.health
    assert (finding.name, finding.level) == ("padded-vocabulary", "info")
    assert "112 of 512 ids have no token; expected where a size is rounded up for speed;" in finding.message
    assert finding.message not in report.warnings


def test_a_vocabulary_much_longer_than_the_tokenizer(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "c", shape=Shape(vocab=4096))
    report = convert(folder, tmp_path / "x.gguf", embed_type="f16")
    (finding,) = warnings_of(report.health)
    assert "4,096 embeddings, but the tokenizer has 400 tokens" in finding.message
    assert finding.name == "vocabulary-mismatch"


def test_a_tokenizer_longer_than_the_vocabulary(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "c", shape=Shape(vocab=448))
    tiny_tokenizer(480).save(str(folder / "tokenizer.json"))
    (finding,) = warnings_of(inspect(folder, health=True).health)
    assert "'config.json': 480 tokens, but 448 embeddings" in finding.message


def test_a_vocab_size_that_is_not_the_number_of_embeddings(
    tmp_path: Path, checkpoint_of: Checkpoints
) -> None:
    folder = edited(checkpoint_of(), tmp_path / "c", lambda config: config.update(vocab_size=520))
    (finding,) = warnings_of(inspect(folder, health=True).health)
    assert "vocab_size 520, but 512 embeddings" in finding.message


def test_a_damaged_file(tmp_path: Path, gguf_of: Callable[..., Path]) -> None:
    def lose(data: bytearray, offset: int, length: int) -> None:
        struct.pack_into("<f", data, offset + length - 32, 0.0)

    path = changed(gguf_of(), tmp_path / "scale.gguf", "blk.0.attn_k.weight", lose)
    assert [f.name for f in warnings_of(inspect(path, health=True).health)] == ["bad-scale"]

    def poison(data: bytearray, offset: int, _length: int) -> None:
        struct.pack_into("<f", data, offset, float("inf"))

    path = changed(gguf_of(), tmp_path / "norm.gguf", "output_norm.weight", poison)
    assert [f.name for f in warnings_of(inspect(path, health=True).health)] == ["not-finite"]


def test_the_shipped_checkpoint_is_healthy(tmp_path: Path) -> None:
    report = convert(SHIPPED, tmp_path / "x.gguf", strict=True)
    assert (report.health, report.warnings) == ([], [])
    assert inspect(SHIPPED, health=True).health == []
    assert inspect(tmp_path / "x.gguf", health=True).health == []


@pytest.mark.parametrize("packing", ["master", "packed-multiply", "packed-divide"])
def test_random_weights_show_no_sign(checkpoint_of: Checkpoints, packing: str) -> None:
    assert warnings_of(inspect(checkpoint_of(packing), health=True).health) == []


@pytest.mark.parametrize("columns", [256, 252, 250])
def test_rows_of_any_width(columns: int) -> None:
    trits = np.random.default_rng(0).integers(-1, 2, (64, columns)).astype(np.int8)
    health = Health()
    health.ternary("sound", TernaryTensor(trits, np.float32(1)))
    health.ternary("another scale", TernaryTensor(trits, np.float32(2)))
    other = trits.copy()
    other[5, [7, 9]] = other[5, [9, 7]] if other[5, 7] != other[5, 9] else [1, -1]
    health.ternary("one pair swapped", TernaryTensor(other, np.float32(1)))
    assert health.findings() == []
    health.ternary("again", TernaryTensor(trits.copy(), np.float32(1)))
    holes = trits.copy()
    holes[:2], holes[:, -1] = 0, 0
    health.ternary("holes", TernaryTensor(holes, np.float32(1)))
    assert [(f.name, f.values) for f in health.findings()] == [
        ("identical-tensors", ["the same trits and scale as 'again'"]),
        ("dead-rows", ["2 of 64 rows are all zeros"]),
        ("dead-columns", [f"1 of {columns} columns are all zeros"]),
    ]


def test_biases_may_be_all_zero() -> None:
    health = Health()
    for name in ("model.layers.0.self_attn.k_proj.bias", "model.layers.0.input_layernorm.weight"):
        health.floats(name, np.zeros(128, np.float32))
    assert [place for finding in health.findings() for place in finding.places] == [
        "'model.layers.0.input_layernorm.weight'"
    ]


def test_a_few_columns_may_be_zero_by_chance() -> None:
    trits = np.random.default_rng(0).integers(-1, 2, (4, 2048)).astype(np.int8)
    assert np.count_nonzero(trits.any(axis=0)) < 2048
    health = Health()
    health.ternary("narrow", TernaryTensor(trits, np.float32(1)))
    assert health.findings() == []


def test_scales_per_group() -> None:
    """Small scales and dead groups among others give no warning; a tensor of small scales is."""
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (64, 512)).astype(np.int8)
    scales = rng.uniform(0.01, 0.05, (64, 8)).astype(np.float32)
    scales[3, 2] = 1e-6
    health = Health()
    health.ternary("a", GroupedTernary(trits, scales))
    assert health.findings() == []
    dead, none = trits.copy(), scales.copy()
    dead[5, 64:128], none[5, 1] = 0, 0
    health.ternary("b", GroupedTernary(dead, none))
    (finding,) = health.findings()
    assert (finding.name, finding.level) == ("dead-groups", "info")
    assert finding.values == ["1 of 512 groups of 64 columns are all zeros"]
    health = Health()
    health.ternary("a", GroupedTernary(trits, scales))
    health.ternary("b", GroupedTernary(trits, scales * np.float32(2)))
    assert health.findings() == []  # the same trits with other scales
    health.ternary("c", GroupedTernary(trits, scales))
    health.ternary("d", GroupedTernary(trits[::-1], scales * np.float32(1e-5)))
    assert {finding.name for finding in health.findings()} == {"identical-tensors", "scale-at-floor"}
    health = Health()
    health.ternary("e", GroupedTernary(np.zeros_like(trits), np.zeros_like(scales)))
    assert [finding.name for finding in health.findings()] == ["all-zero"]


def test_every_sign_has_a_message() -> None:
    for name, kind in SIGNS.items():
        assert name == name.lower().replace(" ", "-")
        assert kind.expected
        assert kind.advice
        health = Health()
        health.add(name, "x", "value")
        (finding,) = health.findings()
        assert finding.message == f"'x': value; expected {kind.expected}; {kind.advice} [{name}]"


def test_the_command_line(tmp_path: Path, checkpoint_of: Checkpoints, run_cli: RunCli) -> None:
    folder = resaved(checkpoint_of(), tmp_path / "c", zero_mlps)
    shown = run_cli("inspect", folder, "--health")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "warning: 6 tensors, such as 'model.layers.0.mlp.down_proj.weight'" in shown.stdout
    document = json.loads(run_cli("inspect", folder, "--health", "--json").stdout)
    (finding,) = [entry for entry in document["health"] if entry["level"] == "warning"]
    assert (finding["name"], finding["count"], finding["damage"]) == ("all-zero", 6, True)
    refused = run_cli("convert", folder, tmp_path / "x.gguf", "--strict", "--embed-type", "f16")
    line = one_line(refused, 1)
    assert "--strict" in line
    assert "nothing is written: all-zero ('model.layers.0.mlp.down_proj.weight': all 131,072" in line
    assert "; and 5 more)" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]
    done = run_cli("convert", folder, tmp_path / "x.gguf", "--embed-type", "f16", "--json")
    assert "[all-zero]" in done.stderr
    assert json.loads(done.stdout)["health"][0]["name"] == "all-zero"
    healthy = run_cli("inspect", SHIPPED, "--health")
    assert "healthy: no sign of a bad checkpoint" in healthy.stdout
