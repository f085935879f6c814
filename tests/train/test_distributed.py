"""Two processes on one machine, as torchrun starts them, against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitexport.train.loss_curve import read_log
from bitexport.train.run_health import HEALTH_KEYS
from bitexport.train.stages import train
from tests.train.conftest import student_config

TWO = [*("-m", "torch.distributed.run", "--nproc-per-node", "2"), *("--rdzv-backend", "c10d")]
TWO += ["--rdzv-endpoint", "localhost:0", "--local-addr", "localhost"]


def test_two_processes_give_the_losses_of_one(teacher: Path, tmp_path: Path) -> None:
    """With the same global batch; also the router's parameters, which DDP does not see, and its usage."""
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
    assert json.loads(done.stdout)["result"]["stage"] == "3"  # one document from two processes
    assert done.stderr.count("wrote ") == 2  # one line per stage
    logs = [read_log(Path(config.run_dir) / "stage3" / "log.jsonl") for config in (one, two)]
    assert len(logs[0]) == len(logs[1])
    for line_of_one, line_of_two in zip(*logs, strict=True):
        assert line_of_one.keys() == line_of_two.keys()
        for name in line_of_one.keys() - {"seconds", "router", *HEALTH_KEYS}:
            expected = pytest.approx(line_of_two[name], rel=2e-4, abs=1e-6)
            assert line_of_one[name] == expected, (name, line_of_one["step"])
        usages = zip(line_of_one.get("router", []), line_of_two.get("router", []), strict=True)
        for usage_of_one, usage_of_two in usages:
            assert usage_of_one == pytest.approx(usage_of_two, abs=1e-4)
