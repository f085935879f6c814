"""Training of ternary language models: full-precision teachers, and ternary students of them.

The result is a checkpoint that ``bitexport convert`` accepts. transformers' Trainer runs the steps;
``bitexport train`` and ``python -m bitexport train`` start it. From Python::

    from bitexport.train import load_config, train
    model_folder = train(load_config("student.toml"), "all")

``stages`` reads from top to bottom; ``data``, ``objective`` and ``student`` have the parts that it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitexport.train.config import TrainConfig, load_config
    from bitexport.train.stages import train

__all__ = ["TrainConfig", "load_config", "train"]


def __getattr__(name: str) -> Any:
    # Imported on first use: packing a checkpoint must not load the Trainer.
    if name == "train":
        from bitexport.train.stages import train

        return train
    if name in ("TrainConfig", "load_config"):
        from bitexport.train import config

        return getattr(config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
