"""Which optimizer gets which parameter, and that two of them behave as one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from bitexport.train.optimizer import MuonAndAdamW, build_optimizer
from tests.train.conftest import tiny_config

SHAPES = {
    "model.embed_tokens.weight": (6, 4),
    "model.layers.0.mlp.up_proj.weight": (8, 4),
    "model.layers.0.mlp.up_proj.bias": (8,),
    "model.norm.weight": (4,),
    "objective.master": (5, 4),
}


def parameters() -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()
    }


def build(named: dict[str, torch.nn.Parameter], folder: Path, optimizer: str) -> torch.optim.Optimizer:
    config = tiny_config(folder, optimizer=optimizer, weight_decay=0.25)
    return build_optimizer(list(named.items()), config, 0.01)


def names_of(named: dict[str, torch.nn.Parameter], group: dict[str, object]) -> list[str]:
    members = {id(parameter) for parameter in group["params"]}  # type: ignore[attr-defined]
    return [name for name, parameter in named.items() if id(parameter) in members]


def test_adamw_decays_matrices_only(tmp_path: Path) -> None:
    named = parameters()
    named["model.norm.weight"].requires_grad_(False)
    optimizer = build(named, tmp_path, "adamw")
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0.0)
    assert names_of(named, matrices) == [name for name, shape in SHAPES.items() if len(shape) == 2]
    assert names_of(named, vectors) == ["model.layers.0.mlp.up_proj.bias"]  # the frozen one is left out


def test_muon_gets_the_matrices_of_the_layers(tmp_path: Path) -> None:
    named = parameters()
    optimizer = build(named, tmp_path, "muon")
    assert isinstance(optimizer, MuonAndAdamW)
    muon, matrices, vectors = optimizer.param_groups
    assert names_of(named, muon) == ["model.layers.0.mlp.up_proj.weight"]
    assert names_of(named, matrices) == ["model.embed_tokens.weight", "objective.master"]
    assert len(names_of(named, vectors)) == 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_learning_rate_and_a_state_that_resumes(tmp_path: Path, optimizer: str) -> None:
    def step(named: dict[str, torch.nn.Parameter], found: torch.optim.Optimizer) -> None:
        for parameter in named.values():
            parameter.grad = parameter.detach().clone()
        for group in found.param_groups:  # as a schedule does
            group["lr"] = 0.5
        found.step()

    named = parameters()
    first = build(named, tmp_path, optimizer)
    step(named, first)
    resumed = {name: torch.nn.Parameter(value.detach().clone()) for name, value in named.items()}
    second = build(resumed, tmp_path, optimizer)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step(named, first)
    step(resumed, second)
    for name, value in named.items():
        assert torch.equal(value, resumed[name]), name
        assert (value - parameters()[name]).abs().max() > 0.1, name  # the rate of the schedule, not 0.01
