"""What a GGUF file needs that upstream llama.cpp lacks."""

from __future__ import annotations

from bitexport.gguf.reader import GGUFFile
from bitexport.gguf.types import I2_S

#: The graph that our llama.cpp adds, and upstream's graph for the same layers with SiLU.
OWN_GRAPH = "bitnet-b1.58"
SUB_NORM_GRAPHS = (OWN_GRAPH, "bitnet")


def lacking_upstream(file: GGUFFile) -> list[str]:
    """What upstream llama.cpp of the pinned release lacks to run a file of bitexport's; empty if nothing.

    tests/integration/test_stock_llama_cpp.py compares it with what an unpatched build does.
    """
    architecture = str(file.metadata.get("general.architecture"))
    found = []
    if any(tensor.type is I2_S for tensor in file.tensors):
        found.append("the tensor type I2_S")
    if architecture == OWN_GRAPH:
        found.append(f"the architecture {OWN_GRAPH}")
    elif any(_is_added_norm(tensor.name, architecture) for tensor in file.tensors):
        found.append(f"norms in front of the linear layers of {architecture}")
    return found


def _is_added_norm(name: str, architecture: str) -> bool:
    sub_norm = "_sub_norm." in name and architecture not in SUB_NORM_GRAPHS
    return sub_norm or "_norm_in." in name
