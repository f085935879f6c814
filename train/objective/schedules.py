"""What changes during a run: the blend of quantization and the weights of the terms.

Pure functions of the optimizer step: a resumed run needs only the Trainer's ``global_step``.
"""

from __future__ import annotations

import math

from bitexport.errors import UsageError

#: Per term: the progress of a run (0 to 1) at which its weight begins to rise, and at which it is full.
CURRICULUM: dict[str, tuple[float, float]] = {
    "next_token": (0.0, 0.0),
    "logits": (0.0, 0.0),
    "relation": (0.0, 0.0),
    "feature": (0.1, 0.4),
    "attention": (0.1, 0.4),
    "contrastive": (0.7, 1.0),
}


def ramp(step: int, warmup_steps: int, shape: str = "linear") -> float:
    """0 at step 0, exactly 1 from ``warmup_steps`` on; between them linear or half a cosine.

    Raises:
        UsageError: the shape is neither linear nor cosine.
    """
    if step >= warmup_steps:
        return 1.0
    done = max(0, step) / warmup_steps
    if shape == "cosine":
        return (1 - math.cos(math.pi * done)) / 2
    if shape != "linear":
        raise UsageError(f"a warm-up of shape {shape!r} is unknown; expected linear or cosine")
    return done


def curriculum_factor(term: str, progress: float) -> float:
    """The factor, 0 to 1, on a term's configured weight at ``progress`` (0 to 1) of a run.

    Raises:
        UsageError: the term is unknown.
    """
    if term not in CURRICULUM:
        raise UsageError(f"the curriculum has no term {term!r}; expected one of {', '.join(CURRICULUM)}")
    start, full = CURRICULUM[term]
    if progress >= full:
        return 1.0
    return max(0.0, (progress - start) / (full - start))
