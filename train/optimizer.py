"""AdamW, or Muon for the matrices of the layers with AdamW for the rest, as one optimizer for the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bitexport.train.config import TrainConfig

Named = Sequence[tuple[str, torch.nn.Parameter]]


def build_optimizer(named: Named, config: TrainConfig, learning_rate: float) -> torch.optim.Optimizer:
    """The configured optimizer over those of the ``named`` parameters that need a gradient."""
    layer_matrices = []
    matrices = []
    vectors = []  # norms and biases
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif config.optimizer == "muon" and name.endswith("_proj.weight"):
            layer_matrices.append(parameter)
        else:
            matrices.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
    if not layer_matrices:
        return adamw
    muon = torch.optim.Muon(
        layer_matrices, lr=learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return MuonAndAdamW(muon, adamw)


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers that learning-rate schedules, checkpoints and the Trainer see as one.

    Muon's steps are scaled to the size of AdamW's ("match_rms_adamw"), so that one learning rate fits both.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.muon = muon
        self.adamw = adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], defaults={})
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
        # The same dictionary objects, so that a schedule that sets lr here sets it in both optimizers.
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]
