"""The definition of a model family: its hyper-parameters, and its tensors' names and shapes on both sides."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families.parts import Part, find_parts
from bitexport.families.rope import Rope, read_rope

#: A single value of GGUF metadata.
Scalar = int | float | str | bool


class Role(Enum):
    """The purpose of a tensor, which decides its type in the GGUF file."""

    NORM = "norm"
    """The gain of a norm; always float32."""
    BIAS = "bias"
    """The bias of a linear layer; always float32."""
    EMBEDDING = "embedding"
    """The token embedding or the output head; stored as the embedding type."""
    TERNARY = "ternary"
    """A linear layer's weight; stored as the ternary type unless ``modules_to_not_convert`` names it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a name map.

    Attributes:
        source: the name in the checkpoint; ``{layer}`` stands for the layer's number.
        target: the name in the GGUF file, with the same placeholder.
        role: the purpose of the tensor.
        shape: its dimensions by name, outermost first; see :meth:`Hyperparameters.dimensions`.
        rotated: whether its rows belong to queries or keys, which RoPE rotates in pairs.
        part: the optional part that it belongs to; None if every checkpoint has it.
        linear: of a bias, or of a norm in front of one linear layer: the source name of that layer's weight.
    """

    source: str
    target: str
    role: Role
    shape: tuple[str, ...]
    rotated: bool = False
    part: Part | None = None
    linear: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A rule applied to one layer: a tensor that the checkpoint must have. Attributes as in :class:`Rule`."""

    source: str
    target: str
    role: Role
    shape: tuple[int, ...]
    rotated: bool = False
    part: Part | None = None
    linear: str | None = None


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """The hyper-parameters of a decoder. Sizes count elements; ``rope`` is described in :mod:`.rope`.

    Attributes:
        input_norm_eps: epsilon of the norms in front of each linear layer, see :attr:`Part.INPUT_NORMS`.
        parts: the optional parts that the checkpoint has.
        causal: whether a token sees only those in front of it.
    """

    vocab_size: int
    context_length: int
    hidden: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_eps: float
    tied: bool
    rope: Rope
    activation: str
    input_norm_eps: float
    parts: frozenset[Part]
    causal: bool

    def dimensions(self) -> dict[str, int]:
        """The dimensions that a :class:`Rule` may name."""
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden,
            "ffn": self.ffn,
            "q": self.heads * self.head_dim,
            "kv": self.kv_heads * self.head_dim,
            "head": self.head_dim,
        }


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family, as data; subclassed where data is not enough.

    Attributes:
        name: the name in reports.
        summary: its distinguishing features in a few words, for the table of supported families.
        architectures: its names in config.json.
        model_class: the transformers class that runs it, after :mod:`bitexport.reference` has added the
            parts that this class lacks.
        gguf_architecture: the llama.cpp graph that runs it.
        activations: the values of ``hidden_act`` that this graph runs; the first is transformers' default.
        default_theta: RoPE's base if config.json has none, as in the transformers class.
        default_eps: the same for ``rms_norm_eps``.
        default_head_dim: the same for ``head_dim``; None if it is hidden_size / num_attention_heads.
        rules: the name map.
        required_parts: the parts that all its checkpoints have.
        optional_parts: the parts that only some of them have.
        qk_norm_after_rope: whether norms on queries and keys, if there are any, follow RoPE.
        derived: regular expressions for the names of tensors in old checkpoints that follow from the
            configuration and are not converted.
    """

    name: str
    summary: str
    architectures: tuple[str, ...]
    model_class: str
    gguf_architecture: str
    activations: tuple[str, ...]
    default_theta: float
    default_eps: float
    rules: tuple[Rule, ...]
    default_head_dim: int | None = None
    required_parts: frozenset[Part] = frozenset()
    optional_parts: frozenset[Part] = frozenset()
    qk_norm_after_rope: bool = False
    derived: tuple[str, ...] = (
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        r"model\.rotary_emb\.inv_freq",
    )

    def parts(self, config: Mapping[str, Any], names: Collection[str]) -> frozenset[Part]:
        """The parts that a checkpoint has; see :func:`find_parts`."""
        return self.required_parts | find_parts(config, names)

    def runs(self, parts: frozenset[Part]) -> bool:
        """Whether the graph can run a checkpoint with these parts."""
        return parts <= self.required_parts | self.optional_parts

    def hyperparameters(self, config: Mapping[str, Any], names: Collection[str] = ()) -> Hyperparameters:
        """Read and check config.json.

        Args:
            config: config.json.
            names: the names of the checkpoint's tensors, by which parts without a key are recognised.

        Raises:
            CheckpointError: a value is missing or invalid.
            UnsupportedError: the values are valid, but the graph cannot run them.
        """
        self._check_supported(config)
        hidden, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
        kv_heads = (
            heads if config.get("num_key_value_heads") is None else count(config, "num_key_value_heads")
        )
        head_dim = self._head_dim(config, hidden, heads)
        if heads % kv_heads or head_dim % 2:
            raise CheckpointError(
                f"config.json: {heads} heads, {kv_heads} key-value heads of {head_dim}; "
                "expected a whole number of heads per key-value head, and an even head_dim"
            )
        eps = _eps(config.get("rms_norm_eps", self.default_eps), "rms_norm_eps")
        return Hyperparameters(
            vocab_size=count(config, "vocab_size"),
            context_length=count(config, "max_position_embeddings"),
            hidden=hidden,
            layers=count(config, "num_hidden_layers"),
            ffn=count(config, "intermediate_size"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rms_eps=eps,
            tied=bool(config.get("tie_word_embeddings", False)) or is_headless(config),
            rope=self._rope(config, head_dim),
            activation=config.get("hidden_act", self.activations[0]),
            input_norm_eps=_input_norm_eps(config, eps),
            parts=self.parts(config, names),
            causal=bool(config.get("is_causal", True)),
        )

    def _head_dim(self, config: Mapping[str, Any], hidden: int, heads: int) -> int:
        if config.get("head_dim") is not None:
            return count(config, "head_dim")
        if self.default_head_dim is not None:
            return self.default_head_dim
        if hidden % heads:
            raise CheckpointError(
                f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; add "
                "head_dim"
            )
        return hidden // heads

    def _rope(self, config: Mapping[str, Any], head_dim: int) -> Rope:  # noqa: ARG002
        return read_rope(config, self.default_theta)

    def _check_supported(self, config: Mapping[str, Any]) -> None:
        activation = config.get("hidden_act", self.activations[0])
        if activation not in self.activations:
            raise UnsupportedError(
                f"hidden_act {activation!r} with architecture {self.architectures[0]}: the "
                f"{self.gguf_architecture} graph computes {' or '.join(map(repr, self.activations))} only"
            )
        if has_sliding_window(config):
            raise UnsupportedError(
                f"some layers use sliding-window attention, which the {self.gguf_architecture} graph lacks; "
                "expected use_sliding_window false"
            )

    def claims(self, numbers: Hyperparameters) -> list[Claim]:
        """Every tensor that the checkpoint must have, in the order in which they are written.

        The head of a tied model is not included.
        """
        sizes = numbers.dimensions()
        found: list[Claim] = []
        before = [rule for rule in self.rules if rule.target.startswith("token_embd")]
        blocks = [
            rule
            for rule in self.rules
            if "{layer}" in rule.source and (rule.part is None or rule.part in numbers.parts)
        ]
        after = [rule for rule in self.rules if rule not in before and "{layer}" not in rule.source]

        def claim(rule: Rule, layer: int) -> Claim:
            return Claim(
                rule.source.format(layer=layer),
                rule.target.format(layer=layer),
                rule.role,
                tuple(sizes[dim] for dim in rule.shape),
                rule.rotated,
                rule.part,
                rule.linear and rule.linear.format(layer=layer),
            )

        found.extend(claim(rule, 0) for rule in before)
        found.extend(claim(rule, layer) for layer in range(numbers.layers) for rule in blocks)
        found.extend(
            claim(rule, 0) for rule in after if not (numbers.tied and rule.source == "lm_head.weight")
        )
        return found

    def gguf_name(self, source: str) -> str | None:
        """The GGUF name for a checkpoint's tensor; None if no rule claims it."""
        return self._forward.rename(source)

    def source_name(self, target: str) -> str | None:
        """The checkpoint's name for a GGUF tensor; None if no rule claims it."""
        return self._backward.rename(target)

    def is_derived(self, source: str) -> bool:
        """Whether a tensor follows from the configuration and need not be converted."""
        return any(re.fullmatch(pattern, source) for pattern in self.derived)

    def row_order(
        self,
        claim: Claim,  # noqa: ARG002
        numbers: Hyperparameters,  # noqa: ARG002
    ) -> npt.NDArray[np.intp] | None:
        """The order in which a tensor's rows are written; None if it does not change.

        ``written[i] = stored[order[i]]``.
        """
        return None

    def gain_offset(self, claim: Claim) -> float:  # noqa: ARG002
        """What is added to a tensor's values while it is written: 1 for norms that multiply by ``1 + w``."""
        return 0.0

    def extra_tensors(self, numbers: Hyperparameters) -> dict[str, npt.NDArray[np.float32]]:
        """Small float32 tensors that the graph needs and the checkpoint lacks, by GGUF name.

        Raises:
            UnsupportedError: the graph cannot run the checkpoint's RoPE.
        """
        if numbers.rope.kind == "llama3":
            raise UnsupportedError(
                f"rope_type 'llama3': the {self.gguf_architecture} graph has no per-frequency factors; "
                "expected rope_type default or linear"
            )
        return {}

    def metadata(self, numbers: Hyperparameters) -> dict[str, Scalar | list[int]]:
        """The hyper-parameters as GGUF keys. Integers are uint32, floats float32, lists int32 arrays."""
        prefix = self.gguf_architecture
        found: dict[str, Scalar | list[int]] = {
            f"{prefix}.vocab_size": numbers.vocab_size,
            f"{prefix}.context_length": numbers.context_length,
            f"{prefix}.embedding_length": numbers.hidden,
            f"{prefix}.block_count": numbers.layers,
            f"{prefix}.feed_forward_length": numbers.ffn,
            f"{prefix}.rope.dimension_count": numbers.head_dim,
            f"{prefix}.attention.head_count": numbers.heads,
            f"{prefix}.attention.head_count_kv": numbers.kv_heads,
            f"{prefix}.attention.layer_norm_rms_epsilon": numbers.rms_eps,
            f"{prefix}.rope.freq_base": numbers.rope.theta,
        }
        if numbers.head_dim * numbers.heads != numbers.hidden:
            found[f"{prefix}.attention.key_length"] = numbers.head_dim
            found[f"{prefix}.attention.value_length"] = numbers.head_dim
        if not numbers.causal:
            found[f"{prefix}.attention.causal"] = False
        if numbers.rope.kind == "linear":
            found[f"{prefix}.rope.scaling.type"] = "linear"
            found[f"{prefix}.rope.scaling.factor"] = numbers.rope.factor
        return found

    @cached_property
    def _forward(self) -> _Names:
        return _Names({rule.source: rule.target for rule in self.rules})

    @cached_property
    def _backward(self) -> _Names:
        return _Names({rule.target: rule.source for rule in self.rules})


class _Names:
    """A name map in one direction."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._patterns = [
            (re.compile(re.escape(source).replace(r"\{layer\}", r"(0|[1-9]\d*)")), target)
            for source, target in names.items()
        ]

    def rename(self, name: str) -> str | None:
        for pattern, target in self._patterns:
            if match := pattern.fullmatch(name):
                return target.format(layer=match[1]) if match.groups() else target
        return None


def is_headless(config: Mapping[str, Any]) -> bool:
    """Whether the architecture ends at the last norm, as ``Qwen3Model`` does: an embedding model."""
    named = config.get("architectures")
    return isinstance(named, list) and bool(named) and str(named[0]).endswith("Model")


def has_sliding_window(config: Mapping[str, Any]) -> bool:
    """Whether any layer uses sliding-window attention, by the keys that transformers' Qwen classes read."""
    if isinstance(kinds := config.get("layer_types"), list):
        return any(kind != "full_attention" for kind in kinds)
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return False
    return count({"max_window_layers": 28, **config}, "max_window_layers") < count(
        config, "num_hidden_layers"
    )


def _input_norm_eps(config: Mapping[str, Any], default: float) -> float:
    """The epsilon of the norms in front of each linear layer; transformers' default is 1e-6."""
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping) and quantization.get("use_rms_norm"):
        return _eps(quantization.get("rms_norm_eps", 1e-6), "quantization_config's rms_norm_eps")
    return default


def _eps(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise CheckpointError(f"config.json: {name} is {value!r}; expected a small positive number")
    return float(value)


def count(config: Mapping[str, Any], key: str) -> int:
    """A positive integer of config.json.

    Raises:
        CheckpointError: it is missing or anything else.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise CheckpointError(f"config.json: {key} is {value!r}; expected a positive integer")
    return value
