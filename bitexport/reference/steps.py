"""The steps of a decoder: for each, llama.cpp's tensor names and where PyTorch has the same values.

Modules are identified by the GGUF name of their weight, so that every family's name map leads to them. A
step whose module a family lacks, or whose tensor its graph does not name, is skipped and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from torch import nn


class Site(Enum):
    """Where a step's values are observed in PyTorch."""

    OUTPUT = "output of a module"
    INPUT = "input of a module"
    BLOCK = "output of the block that contains a module"
    QUERY = "queries passed to the attention function"
    KEY = "keys passed to the attention function"
    HEADS = "result of the attention function"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a block, or before or after all blocks.

    Attributes:
        name: the name in reports, without the layer number.
        site: where its values are observed in PyTorch.
        modules: GGUF weights without ``blk.N.`` and ``.weight``; the first one in the model is observed.
        tensors: llama.cpp's names; the tensor computed last is read.
        operations: the ggml operations that compute it; empty for any.
        rotated: the weight whose row order is the order of the columns.
        decided_by: what it depends on in the file, apart from its input; see also :func:`_decided_by`.
        in_block: whether it is a step of every block.
    """

    name: str
    site: Site
    modules: tuple[str, ...]
    tensors: tuple[str, ...]
    operations: tuple[str, ...] = ()
    rotated: str | None = None
    decided_by: str = ""
    in_block: bool = True


_PRODUCT = ("MUL_MAT", "ADD")  # a bias is added under the product's name
_ROPE = "the RoPE settings (rope.freq_base, rope.scaling.*, rope.dimension_count, rope_freqs)"
_NO_WEIGHT = "the graph and its settings (this step has no weight)"


def _weight(name: str, tensor: str, *, product: bool = False, rotated: bool = False) -> Step:
    operations = _PRODUCT if product else ()
    return Step(
        tensor, Site.OUTPUT, (name,), (tensor,), operations, name if rotated else None, f"{name}.weight"
    )


#: In no fixed order of execution: QK-norm is before RoPE in one family and after it in another.
STEPS: tuple[Step, ...] = (
    Step(
        "embd",
        Site.OUTPUT,
        ("token_embd",),
        ("embd", "inp_scaled"),
        decided_by="token_embd.weight",
        in_block=False,
    ),
    _weight("attn_norm", "attn_norm"),
    Step("q", Site.OUTPUT, ("attn_q",), ("Qcur",), _PRODUCT, "attn_q", "attn_q.weight"),
    Step("k", Site.OUTPUT, ("attn_k",), ("Kcur",), _PRODUCT, "attn_k", "attn_k.weight"),
    Step("v", Site.OUTPUT, ("attn_v",), ("Vcur",), _PRODUCT, None, "attn_v.weight"),
    Step("q_norm", Site.OUTPUT, ("attn_q_norm",), ("Qcur_normed",), decided_by="attn_q_norm.weight"),
    Step("k_norm", Site.OUTPUT, ("attn_k_norm",), ("Kcur_normed",), decided_by="attn_k_norm.weight"),
    Step("q_rope", Site.QUERY, (), ("Qcur", "Qcur_normed", "Qcur_norm"), rotated="attn_q", decided_by=_ROPE),
    Step("k_rope", Site.KEY, (), ("Kcur", "Kcur_normed", "Kcur_norm"), rotated="attn_k", decided_by=_ROPE),
    Step("attn_heads", Site.HEADS, (), ("attn_heads", "kqv_out"), decided_by=_NO_WEIGHT),
    _weight("attn_sub_norm", "attn_sub_norm"),
    Step("attn_out", Site.OUTPUT, ("attn_output",), ("attn_out",), decided_by="attn_output.weight"),
    _weight("post_attention_norm", "attn_post_norm"),
    Step("ffn_inp", Site.INPUT, ("ffn_norm",), ("ffn_inp",), decided_by=_NO_WEIGHT),
    _weight("ffn_norm", "ffn_norm"),
    _weight("ffn_gate", "ffn_gate", product=True),
    _weight("ffn_up", "ffn_up", product=True),
    Step(
        "ffn_gated",
        Site.INPUT,
        ("ffn_sub_norm", "ffn_down"),
        ("ffn_gated", "ffn_sub_out", "ffn_gate_par", "ffn_swiglu", "ffn_reglu", "ffn_geglu"),
        decided_by="the activation function",
    ),
    _weight("ffn_sub_norm", "ffn_sub_norm"),
    Step("ffn_out", Site.OUTPUT, ("ffn_down",), ("ffn_out", "ffn_down"), _PRODUCT, None, "ffn_down.weight"),
    _weight("post_ffw_norm", "ffn_post_norm"),
    Step("l_out", Site.BLOCK, ("attn_norm",), ("l_out",), decided_by=_NO_WEIGHT),
    Step(
        "result_norm",
        Site.OUTPUT,
        ("output_norm",),
        ("result_norm",),
        decided_by="output_norm.weight",
        in_block=False,
    ),
    Step(
        "result_output",
        Site.OUTPUT,
        ("output",),
        ("result_output",),
        decided_by="the output head (output.weight, or token_embd.weight)",
        in_block=False,
    ),
)

#: Every tensor name that C++ has to record.
TENSORS = frozenset(name for step in STEPS for name in step.tensors)


@dataclass(frozen=True, slots=True)
class Place:
    """A step of one layer.

    Attributes:
        step: the step.
        layer: the layer number; None before and after all layers.
        weight: GGUF name of the observed module's weight; None if no module is observed.
        decided_by: what it depends on in the file, apart from its input.
    """

    step: Step
    layer: int | None
    weight: str | None
    decided_by: str

    @property
    def name(self) -> str:
        """``attn_norm-3``, or ``result_norm``."""
        return self.step.name if self.layer is None else f"{self.step.name}-{self.layer}"

    @property
    def tensors(self) -> tuple[str, ...]:
        """llama.cpp's full names for it."""
        if self.layer is None:
            return self.step.tensors
        return tuple(f"{name}-{self.layer}" for name in self.step.tensors)

    @property
    def rotated(self) -> str | None:
        """The GGUF weight whose row order is the order of the columns."""
        return None if self.step.rotated is None else f"blk.{self.layer}.{self.step.rotated}.weight"


#: Steps that a graph of llama.cpp does not have under these names: phi3 scales queries before the product.
_OTHER_STEPS: Mapping[str, frozenset[str]] = MappingProxyType({"phi3": frozenset({"q_rope"})})


def places(modules: Mapping[str, nn.Module], layers: int, graph: str = "") -> tuple[list[Place], list[str]]:
    """The steps of a model, and the names of those that are absent from every layer.

    Args:
        modules: the model's modules by the GGUF name of their weight.
        layers: number of blocks.
        graph: the GGUF architecture.
    """
    other = _OTHER_STEPS.get(graph, frozenset())
    found: list[Place] = []
    absent = []
    for step in STEPS:
        here = [
            place
            for layer in _layers(step, layers)
            if step.name not in other and (place := _place(step, layer, modules))
        ]
        found += here
        if not here:
            absent.append(step.name)
    return found, absent


def _layers(step: Step, layers: int) -> list[int | None]:
    return list(range(layers)) if step.in_block else [None]


def _place(step: Step, layer: int | None, modules: Mapping[str, nn.Module]) -> Place | None:
    if not step.modules:
        return Place(step, layer, None, step.decided_by)
    prefix = "" if layer is None else f"blk.{layer}."
    names = [f"{prefix}{module}.weight" for module in step.modules]
    weight = next((name for name in names if name in modules), None)
    return Place(step, layer, weight, _decided_by(step, weight, modules)) if weight else None


def _decided_by(step: Step, weight: str, modules: Mapping[str, nn.Module]) -> str:
    """For a step that is a weight: everything in its module, and the metadata that a norm uses."""
    if not step.decided_by.endswith(".weight"):
        return step.decided_by
    stem = weight.removesuffix(".weight")
    found = [weight]
    if getattr(modules[weight], "bias", None) is not None:
        found.append(f"{stem}.bias")
    if (norm := f"{stem}_norm_in.weight") in modules:
        found.append(norm)
    if stem.endswith("norm"):
        found.append("attention.layer_norm_rms_epsilon")
    return " or ".join(found)
