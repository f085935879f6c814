"""Muon for the ternary matrices, AdamW for embeddings and norms, as one optimizer for the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from train.config import PretrainConfig


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers that learning-rate schedules, checkpoints and the Trainer see as one.

    Muon's steps are scaled to the size of AdamW's ("match_rms_adamw"), so that one learning rate serves both.
    Settings are those of :class:`train.config.PretrainConfig`.
    """

    def __init__(self, model: torch.nn.Module, config: PretrainConfig) -> None:
        named = dict(model.named_parameters())
        matrices = [parameter for name, parameter in named.items() if name.endswith("_proj.weight")]
        tables = [
            parameter
            for name, parameter in named.items()
            if name.endswith(("embed_tokens.weight", "lm_head.weight"))
        ]
        norms = [parameter for name, parameter in named.items() if parameter.ndim == 1]
        assert len(matrices) + len(tables) + len(norms) == len(named), "a parameter without an optimizer"
        self.muon = torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW(
            [{"params": tables, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            fused=True,
        )
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


class MuonFactory:
    """How the Trainer takes an optimizer that wants to see the model and not a list of parameters."""

    def __call__(self, model: torch.nn.Module, *, config: PretrainConfig) -> MuonAndAdamW:
        return MuonAndAdamW(model, config)
