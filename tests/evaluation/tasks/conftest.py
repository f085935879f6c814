"""The same checkpoint as a model of lm-evaluation-harness in both ways: its ``hf`` backend, and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TASKS = Path(__file__).parents[3] / "examples" / "tasks"


@dataclass(frozen=True)
class Both:
    """Two ways to ask one model."""

    checkpoint: Path
    gguf: Path
    hf: Any
    ours: Any


@pytest.fixture(scope="package", autouse=True)
def no_hub() -> Iterator[None]:
    """The harness would look for data sets and models. Other tests have a hub of their own."""
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="package")
def both_of(
    checkpoint_of: Callable[..., Path], gguf_of: Callable[..., Path]
) -> Iterator[Callable[..., Both]]:
    """``both_of(tokenizer, **arguments)``: the arguments are given to both model classes."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from bitexport.evaluation.tasks.model import BitexportLM
    from bitexport.reference.opening import load_reference

    made: dict[tuple[Any, ...], Both] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices
    torch.set_grad_enabled(False)  # HFLM does, too; training tests may follow in this process

    def make(tokenizer: str = "gpt2", **arguments: Any) -> Both:
        key = (tokenizer, *sorted(arguments.items()))
        if key not in made:
            checkpoint = checkpoint_of("packed-multiply", tokenizer=tokenizer)
            gguf = gguf_of("packed-multiply", tokenizer=tokenizer)
            hf = HFLM(
                pretrained=load_reference(checkpoint).model,
                tokenizer=AutoTokenizer.from_pretrained(checkpoint),
                # of two requests with the same tokens, split at two places, it answers one wrongly
                logits_cache=False,
                **arguments,
            )
            ours = BitexportLM(str(gguf), threads=2, **arguments)
            made[key] = Both(checkpoint, gguf, hf, ours)
        return made[key]

    yield make
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    for both in made.values():
        both.ours.close()
