from __future__ import annotations

from pathlib import Path

import torch

from train.model import build_model
from train.optimizer import MuonAndAdamW
from train.pretrain import pretrain, read_log

from .conftest import tiny_config


def test_every_parameter_moves_at_the_rate_that_a_schedule_sets(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, weight_decay=0.0)
    model = build_model(config, end_of_text=0)
    optimizer = MuonAndAdamW(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step == 0 else 1.0)
    ids = torch.randint(300, (2, 16), generator=torch.manual_seed(0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for expected_to_move in (False, True):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) != expected_to_move, name


def test_its_state_survives_a_checkpoint(tmp_path: Path) -> None:
    """Undo everything after step 10 and go on from there: the same ten losses come out."""
    config = tiny_config(tmp_path, optimizer="muon")
    run = Path(config.run_dir)
    pretrain(config, say=lambda _: None)
    straight = [line["loss"] for line in read_log(run / "log.jsonl") if "loss" in line]
    for folder in ("checkpoint-20", "master"):
        (run / folder).rename(tmp_path / folder)
    pretrain(config, resume=True, say=lambda _: None)
    resumed = [line["loss"] for line in read_log(run / "log.jsonl") if "loss" in line]
    assert straight[-1] < straight[0] - 1
    torch.testing.assert_close(resumed, straight)
