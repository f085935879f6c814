"""A few damaged checkpoints, and a planted fault that they must show."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import bitexport.checkpoint.safetensors
from tests.torture import checkpoint_damage
from tests.torture.kinds import checkpoints


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    checkpoints.prepare(folder)
    return folder


def outcomes(prepared: Path, folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setenv("BITEXPORT_TRIAL", "0")  # execute sets it
    found = set()
    for number in range(count):
        scratch = folder / str(number)
        scratch.mkdir(parents=True)
        found.add(checkpoints.execute(random.Random(number), prepared, scratch))
    return found


def test_damaged_checkpoints_are_rejected_or_converted(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = outcomes(prepared, tmp_path, 100, monkeypatch)
    assert {"worked", "refused: CheckpointError", "refused: TokenizerError by convert alone"} <= found


def test_an_unexpected_exception_is_found(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: the reader raises KeyError instead of CheckpointError."""
    monkeypatch.setattr(bitexport.checkpoint.safetensors, "CheckpointError", KeyError)
    with pytest.raises(KeyError):
        outcomes(prepared, tmp_path, 100, monkeypatch)


def test_damage_varies_with_the_seed_and_is_reproducible() -> None:
    data = b'{"a": [1, 2, {"b": "c"}], "d": null}'
    first = [checkpoint_damage.damage_json(data, random.Random(seed)) for seed in range(50)]
    again = [checkpoint_damage.damage_json(data, random.Random(seed)) for seed in range(50)]
    assert first == again
    assert len(set(first)) > 20
