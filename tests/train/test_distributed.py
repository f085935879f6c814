"""Two processes on one machine, as torchrun starts them, against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitexport.train.loss_curve import read_log
from bitexport.train.stages import train
from tests.train.conftest import student_config

TWO = [*("-m", "torch.distributed.run", "--nproc-per-node", "2"), *("--rdzv-backend", "c10d")]
TWO += ["--rdzv-endpoint", "localhost:0", "--local-addr", "localhost"]


def test_two_processes_give_the_losses_of_one(teacher: Path, tmp_path: Path) -> None:
    """The same global batch; the router's own parameters, which DDP does not see, and its use as well."""
    changes: dict[str, object] = {"feature_weight": 0.5, "router": True, "stage3_tokens": 2000, "threads": 1}
    changes |= {"learning_rate": 1e-2, "log_every": 2, "save_every": 3, "lambda_warmup_ratio": 0.5}
    one = student_config(tmp_path / "one", teacher, stage2_tokens=0, **changes)
    train(one, "all", say=lambda _: None)
    two = student_config(tmp_path / "two", teacher, **{**vars(one), "run_dir": str(tmp_path / "two" / "run")})
    (tmp_path / "two.toml").write_text(two.to_toml())
    command = [sys.executable, *TWO, "-m", "bitexport", "train", str(tmp_path / "two.toml"), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["stage"] == "3"  # one document of two processes
    assert done.stderr.count("wrote ") == 2  # one line a stage
    logs = [read_log(Path(config.run_dir) / "stage3" / "log.jsonl") for config in (one, two)]
    assert len(logs[0]) == len(logs[1])
    for mine, theirs in zip(*logs, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"seconds", "router"}:
            assert mine[name] == pytest.approx(theirs[name], rel=2e-4, abs=1e-6), (name, mine["step"])
        for ours, other in zip(mine.get("router", []), theirs.get("router", []), strict=True):
            assert ours == pytest.approx(other, abs=1e-4)
