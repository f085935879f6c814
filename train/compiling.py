"""Compiles the layers of a model one by one: they share their code, so that one compilation serves all."""

from __future__ import annotations

from typing import Any

import torch

from bitexport.train.config import TrainConfig

# torch.compile's; another one for tests.
_BACKEND = "inductor"


def compiles(config: TrainConfig) -> bool:
    """Whether the layers of this run are compiled: by itself where there is an accelerator."""
    return config.compile == "layers" or (config.compile == "auto" and torch.cuda.is_available())


def packs(config: TrainConfig) -> bool:
    """Whether prompts with answers are packed into rows: by itself where layers are compiled.

    The contrastive term, the router and block diffusion need each text in a row of its own.
    """
    if config.contrastive_weight or config.router or config.diffusion_weight:
        return False
    return config.packing == "on" or (config.packing == "auto" and compiles(config))


def compile_layers(model: Any) -> None:
    """Compile the forward pass of every decoder layer of ``model`` on its first use, for fixed shapes."""
    # Warm-up of lambda, evaluation and the layer that shows its queries, keys and values are compiled apart.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 16)
    # That layer has hooks inside; without guards it would run the code of another one.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    for layer in model.model.layers:
        # Its forward, not its call: hooks of transformers on the layer stay outside.
        layer.forward = torch.compile(layer.forward, dynamic=False, backend=_BACKEND)
