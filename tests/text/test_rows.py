"""A stream of rows whose connection drops: every row comes once, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from bitexport.errors import BitexportWarning, UsageError
from bitexport.text import Document, read_source, rows


def shards(folder: Path, counts: tuple[int, ...] = (700, 3, 900)) -> list[str]:
    """A dataset of several files; returns its texts."""
    folder.mkdir()
    texts = [f"text {number}" for number in range(sum(counts))]
    begin = 0
    for shard, count in enumerate(counts):
        lines = [json.dumps({"text": text}) for text in texts[begin : begin + count]]
        (folder / f"train-{shard}.jsonl").write_text("\n".join(lines))
        begin += count
    return texts


class Dropping:
    """A real stream of ``datasets`` that loses its connection, as ``drops`` says batch by batch."""

    def __init__(self, stream: Any, drops: list[Exception | None]) -> None:
        self.stream = stream
        self.drops = drops
        self.state_dict = stream.state_dict
        self.load_state_dict = stream.load_state_dict

    def iter(self, batch_size: int) -> Iterator[Any]:
        for batch in self.stream.iter(batch_size):
            error = self.drops.pop(0) if self.drops else None
            if error is not None:
                raise error
            yield batch


def dropping(monkeypatch: pytest.MonkeyPatch, drops: list[Exception | None]) -> list[float]:
    """Make every stream drop; the list that is returned gets the waiting times."""
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda **args: Dropping(load(**args), drops))
    waits: list[float] = []
    monkeypatch.setattr(rows.time, "sleep", waits.append)
    return waits


@pytest.mark.parametrize(
    "drops",
    [
        [ConnectionResetError("reset")],
        [None, None, TimeoutError("slow"), ConnectionError("again"), None, ConnectionError("and again")],
    ],
)
def test_a_dropped_connection_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drops: list[Exception | None]
) -> None:
    texts = shards(tmp_path / "set")
    failures = sum(drop is not None for drop in drops)
    waits = dropping(monkeypatch, drops)
    with pytest.warns(BitexportWarning, match="trying again in 1 s"):
        records = list(read_source(f"hub:{tmp_path / 'set'}"))
    assert records == [Document(text) for text in texts]
    assert len(waits) == failures
    assert max(waits, default=0) <= 2  # rows that arrived begin the list of waiting times again


def test_a_network_that_stays_away_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "set")
    waits = dropping(monkeypatch, [ConnectionError("gone") for _ in range(20)])
    with (
        pytest.warns(BitexportWarning),
        pytest.raises(UsageError, match=r"cannot be read \(ConnectionError: gone"),
    ):
        list(read_source(f"hub:{tmp_path / 'set'}"))
    assert waits == [*rows.RETRY_AFTER]


def test_other_errors_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "set")
    waits = dropping(monkeypatch, [ValueError("broken file")])
    with pytest.raises(UsageError, match="broken file"):
        list(read_source(f"hub:{tmp_path / 'set'}"))
    assert waits == []
    refused = OSError("403")
    refused.response = type("Response", (), {"status_code": 403})()  # type: ignore[attr-defined]
    refused.__cause__ = ConnectionError("from below")
    assert not rows.is_of_network(refused)
