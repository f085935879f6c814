"""Gemma 3 text as a ternary student: norms in front of each linear layer (bitnet-embeddings-270m), or SubLN.

It runs on llama.cpp's ``gemma3`` with the norms that native/llama_cpp/models/gemma3_norms.cpp adds. Gemma's
own norms multiply by ``1 + w`` and are written as that gain; those in front of linear layers multiply by
``w``. Layers with a sliding window and layers without one have separate RoPE settings.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families.base import Claim, Family, Hyperparameters, Role, Scalar, count
from bitexport.families.parts import Part
from bitexport.families.rope import Rope, read_rope
from bitexport.families.rules import decoder_rules

SLIDING, FULL = "sliding_attention", "full_attention"

#: transformers' default bases of RoPE, by the type of the layer.
DEFAULT_THETA = MappingProxyType({FULL: 1_000_000.0, SLIDING: 10_000.0})
#: Every n-th layer attends to everything if config.json has neither layer_types nor a pattern.
DEFAULT_PATTERN = 6


@dataclass(frozen=True, slots=True)
class Gemma3Hyperparameters(Hyperparameters):
    """Attributes as in :class:`Hyperparameters`, whose ``rope`` is that of layers without a window, and:

    Attributes:
        window: how many tokens a sliding-window layer sees, its own position included.
        sliding: for each layer, whether it has that window.
        local_theta: the base of RoPE in those layers.
        attention_scale: what the products of queries and keys are multiplied by.
        soft_cap: the bound of the logits; 0 if they have none.
    """

    window: int
    sliding: tuple[bool, ...]
    local_theta: float
    attention_scale: float
    soft_cap: float


@dataclass(frozen=True, kw_only=True)
class Gemma3Family(Family):
    """Gemma 3 text, if it has norms that Google's does not have; the plain one is an ordinary ``gemma3``."""

    def runs(self, parts: frozenset[Part]) -> bool:
        """Only with norms in front of linear layers or SubLN."""
        return bool(parts & {Part.INPUT_NORMS, Part.SUB_NORMS}) and super().runs(parts)

    def hyperparameters(
        self, config: Mapping[str, Any], names: Collection[str] = ()
    ) -> Gemma3Hyperparameters:
        """See :meth:`Family.hyperparameters`."""
        given = {
            "tie_word_embeddings": True,
            **config,
            "hidden_act": config.get("hidden_activation") or self.activations[0],
        }
        given["is_causal"] = config.get("is_causal", True) and not config.get("use_bidirectional_attention")
        numbers = super().hyperparameters(given, names)
        if config.get("attn_logit_softcapping"):
            raise UnsupportedError(
                f"attn_logit_softcapping is {config['attn_logit_softcapping']!r}, which the gemma3 graph "
                "lacks; expected null"
            )
        scalar = config.get("query_pre_attn_scalar", 256)
        return Gemma3Hyperparameters(
            **{field.name: getattr(numbers, field.name) for field in fields(Hyperparameters)},
            window=count({"sliding_window": 4096, **config}, "sliding_window"),
            sliding=_sliding(config, numbers.layers),
            local_theta=_rope(config, SLIDING).theta,
            attention_scale=1 / math.sqrt(_positive(scalar, "query_pre_attn_scalar")),
            soft_cap=_positive(config.get("final_logit_softcapping") or math.inf, "final_logit_softcapping"),
        )

    def _rope(self, config: Mapping[str, Any], head_dim: int) -> Rope:  # noqa: ARG002
        return _rope(config, FULL)

    def _check_supported(self, config: Mapping[str, Any]) -> None:
        if config["hidden_act"] not in self.activations:
            raise UnsupportedError(
                f"hidden_activation {config['hidden_act']!r}: the gemma3 graph computes "
                f"{' or '.join(map(repr, self.activations))} only"
            )

    def gain_offset(self, claim: Claim) -> float:
        """1 for Gemma's own norms and SubLN, which is made of the same class."""
        return 1.0 if claim.role is Role.NORM and claim.part is not Part.INPUT_NORMS else 0.0

    def metadata(self, numbers: Hyperparameters) -> dict[str, Scalar | list[int]]:
        """The hyper-parameters as GGUF keys, in llama.cpp's names for Gemma 3."""
        assert isinstance(numbers, Gemma3Hyperparameters)
        found = super().metadata(numbers)
        prefix = self.gguf_architecture
        found[f"{prefix}.attention.key_length"] = numbers.head_dim
        found[f"{prefix}.attention.value_length"] = numbers.head_dim
        found[f"{prefix}.attention.scale"] = numbers.attention_scale
        if any(numbers.sliding):
            found[f"{prefix}.attention.sliding_window"] = numbers.window
            found[f"{prefix}.attention.sliding_window_pattern"] = [int(layer) for layer in numbers.sliding]
            found[f"{prefix}.rope.freq_base_swa"] = numbers.local_theta
        if math.isfinite(numbers.soft_cap):
            found[f"{prefix}.final_logit_softcapping"] = numbers.soft_cap
        if Part.INPUT_NORMS in numbers.parts:
            found[f"{prefix}.norm_in_rms_epsilon"] = numbers.input_norm_eps
        return found


def _sliding(config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """For each layer, whether it has a sliding window: ``layer_types``, or a pattern as in older files."""
    kinds = config.get("layer_types")
    if kinds is None:
        pattern = count({"sliding_window_pattern": DEFAULT_PATTERN, **config}, "sliding_window_pattern")
        return tuple((layer + 1) % pattern != 0 for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= {SLIDING, FULL}:
        raise CheckpointError(
            f"config.json: layer_types is {kinds!r}; expected {layers} entries, each {SLIDING} or {FULL}"
        )
    return tuple(kind == SLIDING for kind in kinds)


def _rope(config: Mapping[str, Any], kind: str) -> Rope:
    """The RoPE settings of one type of layer.

    transformers 5 keeps one set per type in ``rope_parameters``; before, there were ``rope_theta`` with
    ``rope_scaling``, and ``rope_local_base_freq`` for the layers with a window.
    """
    parameters = config.get("rope_parameters")
    settings = dict(parameters.get(kind) or {}) if isinstance(parameters, Mapping) else {}
    if kind == FULL and isinstance(config.get("rope_scaling"), Mapping):
        settings.update(config["rope_scaling"])
    old = config.get("rope_theta" if kind == FULL else "rope_local_base_freq")
    settings.setdefault("rope_theta", DEFAULT_THETA[kind] if old is None else old)
    rope = read_rope({"rope_parameters": settings}, DEFAULT_THETA[kind])
    if rope.kind not in ("default", "linear") or (kind == SLIDING and rope.kind != "default"):
        raise UnsupportedError(
            f"rope_type {rope.kind!r} in layers of type {kind}: the gemma3 graph runs default, and linear in "
            f"layers of type {FULL}"
        )
    return rope


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise CheckpointError(f"config.json: {name} is {value!r}; expected a positive number")
    return float(value)


GEMMA3 = Gemma3Family(
    name="Gemma 3 student",
    summary="Gemma 3 text and its embedding models, with a norm in front of each linear layer or SubLN",
    architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
    model_class="Gemma3ForCausalLM",
    gguf_architecture="gemma3",
    activations=("gelu_pytorch_tanh",),
    default_theta=DEFAULT_THETA[FULL],
    default_eps=1e-6,
    default_head_dim=256,
    rules=decoder_rules(post_norms=True),
    required_parts=frozenset({Part.QK_NORMS}),
    optional_parts=frozenset({Part.SUB_NORMS, Part.INPUT_NORMS}),
)
