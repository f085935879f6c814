"""AdamW, or Muon for the matrices of the layers with AdamW for all else, as one optimizer for the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bitexport.train.config import TrainConfig


def build_optimizer(
    named: Sequence[tuple[str, torch.nn.Parameter]], config: TrainConfig, rate: float
) -> torch.optim.Optimizer:
    """The optimizer that ``config`` asks for, over the ``named`` parameters that want a gradient."""
    wanted = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    flat = [parameter for _, parameter in wanted if parameter.ndim < 2]
    layers = [value for name, value in wanted if config.optimizer == "muon" and name.endswith("_proj.weight")]
    chosen = {id(parameter) for parameter in [*flat, *layers]}
    rest = [parameter for _, parameter in wanted if id(parameter) not in chosen]
    groups = [{"params": rest, "weight_decay": config.weight_decay}, {"params": flat, "weight_decay": 0.0}]
    betas = config.adam_beta1, config.adam_beta2
    adamw = torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
    if not layers:
        return adamw
    muon = torch.optim.Muon(layers, lr=rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return MuonAndAdamW(muon, adamw)


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers that learning-rate schedules, checkpoints and the Trainer see as one.

    Muon's steps are scaled to the size of AdamW's ("match_rms_adamw"), so that one learning rate serves both.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.muon, self.adamw = muon, adamw
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], defaults={})
        self._share_groups()

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the Trainer calls backward itself"
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()

    def _share_groups(self) -> None:
        # The very same dictionaries: a schedule that sets lr here sets it there.
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]
