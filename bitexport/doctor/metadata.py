"""Do a GGUF file's hyper-parameters agree with config.json?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bitexport.checkpoint.block_diffusion import diffusion_settings
from bitexport.convert.plan import Plan
from bitexport.gguf.diffusion_settings import BLOCK_SIZE, diffusion_of
from bitexport.gguf.reader import Array, GGUFFile

#: Two names for one graph: the second one is Microsoft's old spelling.
SAME_GRAPH = ("bitnet-b1.58", "bitnet-25")

#: Keys that do not affect the result, so a file may omit them.
OPTIONAL = ("vocab_size", "context_length", "rope.dimension_count", "attention.head_count_kv")

#: Keys that change the graph's arithmetic if a file has them.
CHANGES_ARITHMETIC = (
    "rope.scaling.",
    "attention.scale",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


def metadata_differences(plan: Plan, file: GGUFFile) -> list[str]:
    """Keys whose value in the file differs from the checkpoint's, as clauses."""
    expected_graph = plan.family.gguf_architecture
    graph = str(file.metadata.get("general.architecture"))
    found = []
    if graph != expected_graph and not {graph, expected_graph} <= set(SAME_GRAPH):
        found.append(f"general.architecture is {graph!r}, expected {expected_graph!r}")
    expected = {
        key.removeprefix(f"{expected_graph}."): value
        for key, value in plan.family.metadata(plan.numbers).items()
    }
    for key, value in expected.items():
        in_file = file.metadata.get(f"{graph}.{key}")
        if isinstance(in_file, Array):
            in_file = list(file.elements(f"{graph}.{key}"))
        if in_file is None:
            if key not in OPTIONAL:
                found.append(f"{graph}.{key} is missing, expected {value!r}")
        elif not _same(in_file, value):
            found.append(f"{graph}.{key} is {in_file!r}, expected {value!r} as in the checkpoint")
    for key, value in file.metadata.items():
        short = key.removeprefix(f"{graph}.")
        if (
            short != key
            and short not in expected
            and short.startswith(CHANGES_ARITHMETIC)
            and value != "none"
        ):
            found.append(f"{key} is {value!r}, and the checkpoint has no such setting")
    return found


def decoding_difference(config: Mapping[str, Any], file: GGUFFile) -> str | None:
    """A clause on how the file would be decoded differently from what the model was trained for, or None.

    Raises:
        CheckpointError, GGUFError: a setting of block diffusion is invalid.
    """
    trained, written = diffusion_settings(config), diffusion_of(file)
    if trained == written:
        return None
    if written is None:
        return (
            f"the checkpoint is a model of block diffusion (blocks of {trained.block_size if trained else 0} "
            f"tokens), but the file has no {BLOCK_SIZE}, so it is decoded as a plain model, token by token"
        )
    if trained is None:
        return (
            f"the checkpoint is a plain model, but the file has {BLOCK_SIZE} {written.block_size}, so it is "
            "decoded in blocks, which the model was not trained for"
        )
    return f"the checkpoint has the block diffusion settings {trained}, the file {written}"


def _same(found: object, expected: float | str | list[int]) -> bool:
    if isinstance(found, (int, float)) and isinstance(expected, (int, float)):
        return math.isclose(found, expected, rel_tol=1e-6)
    return found == expected
