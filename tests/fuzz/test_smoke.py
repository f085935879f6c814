"""A few of the fuzzer's executions in every test run, and proof that it sees what it looks for."""

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


def test_damaged_checkpoints_are_refused_or_converted(seeds: list[Path], tmp_path: Path) -> None:
    outcomes = {run_one(seeds[index % len(seeds)], index, 0, tmp_path) for index in range(300)}
    assert {"converted", "CheckpointError", "TokenizerError"} <= outcomes
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_has_no_name_is_a_failure(
    seeds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is planted in the reader: a header that is no JSON raises what json raises."""
    planted = bitexport.checkpoint.safetensors
    monkeypatch.setattr(planted, "CheckpointError", KeyError)

    def run_until_it_is_met() -> None:
        for index in range(200):
            run_one(seeds[0], index, 0, tmp_path)

    with pytest.raises(KeyError):
        run_until_it_is_met()


def test_damages_differ_and_repeat() -> None:
    data = b'{"a": [1, 2, {"b": "c"}], "d": null}'
    first = [fuzz_checkpoint.damage_json(data, random.Random(seed)) for seed in range(50)]
    again = [fuzz_checkpoint.damage_json(data, random.Random(seed)) for seed in range(50)]
    assert first == again
    assert len(set(first)) > 20
