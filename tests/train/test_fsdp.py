"""Settings that need complete weights are refused with FSDP."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bitexport.errors import UsageError
from bitexport.train.fsdp import check_fsdp
from tests.train.conftest import tiny_config


@pytest.mark.parametrize(
    ("version", "changes", "message"),
    [
        (1, {}, "fsdp_version 1 here; set it to 2"),
        (2, {"optimizer": "muon"}, 'optimizer = "muon"; set "adamw"'),
        (2, {"chunk_tokens": 64}, "chunk_tokens = 64; set it to 0"),
        (2, {"router": True}, "router or logit_projector; set both to false"),
        (2, {"logit_projector": True}, "router or logit_projector; set both to false"),
    ],
)
def test_what_does_not_work_sharded(
    tmp_path: Path, version: int, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=f"FSDP does not work with {message}"):
        check_fsdp(tiny_config(tmp_path, **changes), SimpleNamespace(fsdp_version=version))


def test_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_fsdp(tiny_config(tmp_path), SimpleNamespace(fsdp_version=2))
    check_fsdp(tiny_config(tmp_path, optimizer="muon", chunk_tokens=64), None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="FSDP does not work on CPUs"):
        check_fsdp(tiny_config(tmp_path), None)
