"""A few executions of the fuzzer, and a planted fault that it must find."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import bitexport.checkpoint.safetensors
from tests.fuzz import fuzz_checkpoint
from tests.fuzz.fuzz_checkpoint import make_seeds, run_one


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_seeds(tmp_path_factory.mktemp("seeds"))


def test_damaged_checkpoints_are_rejected_or_converted(seeds: list[Path], tmp_path: Path) -> None:
    outcomes = {run_one(seeds[index % len(seeds)], index, 0, tmp_path) for index in range(300)}
    assert {"converted", "CheckpointError", "TokenizerError"} <= outcomes
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_exception_is_a_failure(
    seeds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: the reader raises KeyError instead of CheckpointError."""
    planted = bitexport.checkpoint.safetensors
    monkeypatch.setattr(planted, "CheckpointError", KeyError)

    def run_until_it_is_found() -> None:
        for index in range(200):
            run_one(seeds[0], index, 0, tmp_path)

    with pytest.raises(KeyError):
        run_until_it_is_found()


def test_damage_varies_with_the_seed_and_is_reproducible() -> None:
    data = b'{"a": [1, 2, {"b": "c"}], "d": null}'
    first = [fuzz_checkpoint.damage_json(data, random.Random(seed)) for seed in range(50)]
    again = [fuzz_checkpoint.damage_json(data, random.Random(seed)) for seed in range(50)]
    assert first == again
    assert len(set(first)) > 20
