"""Do a GGUF file's hyper-parameters say what config.json says?"""

from __future__ import annotations

import math

from bitexport.convert.plan import Plan
from bitexport.gguf.reader import GGUFFile

#: names of one graph: ours reads Microsoft's old spelling too.
SAME_GRAPH = ("bitnet-b1.58", "bitnet-25")

#: keys that change no number, so that a file may leave them out.
OPTIONAL = ("vocab_size", "context_length", "rope.dimension_count", "attention.head_count_kv")

#: keys that change the graph's arithmetic where a file has them.
CHANGES_NUMBERS = (
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
    """What the file says otherwise than the checkpoint, as clauses."""
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
        theirs = file.metadata.get(f"{graph}.{key}")
        if theirs is None:
            if key not in OPTIONAL:
                found.append(f"{graph}.{key} is missing, expected {value!r}")
        elif not _same(theirs, value):
            found.append(f"{graph}.{key} is {theirs!r}, the checkpoint says {value!r}")
    for key, value in file.metadata.items():
        short = key.removeprefix(f"{graph}.")
        if short != key and short not in expected and short.startswith(CHANGES_NUMBERS) and value != "none":
            found.append(f"{key} is {value!r}, of which the checkpoint knows nothing")
    return found


def _same(theirs: object, ours: float | str) -> bool:
    if isinstance(theirs, (int, float)) and isinstance(ours, (int, float)):
        return math.isclose(theirs, ours, rel_tol=1e-6)
    return theirs == ours
