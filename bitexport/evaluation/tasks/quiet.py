"""Keeps lm-evaluation-harness from writing to the terminal, and its random choices from ours."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bitexport.progress import Progress, ProgressEvent

#: The harness' own seeds: tasks shuffle choices and select examples with them.
_PYTHON_SEED = 0
_NUMPY_SEED = 1234
FEWSHOT_SEED = 1234


@contextlib.contextmanager
def quiet(progress: Progress) -> Iterator[None]:
    """While the block runs, the harness logs errors only, prints nothing, and its bars go to ``progress``."""
    import datasets
    import lm_eval.api.task
    import tqdm

    log = logging.getLogger("lm_eval")
    level = log.level
    bars = datasets.are_progress_bars_disabled()
    places: list[Any] = [tqdm, lm_eval.api.task]
    before = [place.tqdm for place in places]
    one_process = os.environ.get("DISABLE_MULTIPROC")

    def reported(items: Iterable[Any] = (), *_: Any, total: int | None = None, **__: Any) -> Iterator[Any]:
        items = list(items)
        for done, item in enumerate(items):
            progress(ProgressEvent(done, total or len(items), "examples", "writing prompts"))
            yield item

    class Silent(tqdm.tqdm):  # type: ignore[misc]
        """A class, because modules that are imported meanwhile keep it."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **{**named, "disable": True})

    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # it would fork this process, which has threads, to compute standard errors
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        tqdm.tqdm, lm_eval.api.task.tqdm = Silent, reported
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for place, original in zip(places, before, strict=True):
            place.tqdm = original
        log.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        if one_process is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = one_process


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """While the block runs, the generators of random numbers begin where the harness lets them begin."""
    python, numbers = random.getstate(), np.random.get_state()
    random.seed(_PYTHON_SEED)
    np.random.seed(_NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
