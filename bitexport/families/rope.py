"""RoPE settings, in transformers 5's format (``rope_parameters``) and the older one (``rope_theta``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.errors import CheckpointError, UnsupportedError

KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation of queries and keys by position.

    Attributes:
        theta: the base of the frequencies.
        kind: one of :data:`KINDS`.
        factor: the factor by which the context was extended; 1 for ``default``.
        low, high: llama3's low and high frequency factors.
        original_context: llama3's context length before it was extended.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_context: int = 8192


def read_rope(config: Mapping[str, Any], default_theta: float) -> Rope:
    """The RoPE settings in config.json.

    Raises:
        CheckpointError: a value is invalid.
        UnsupportedError: none of the supported graphs runs this kind of RoPE.
    """
    found = _settings(config)
    if any(isinstance(value, dict) for value in found.values()):
        raise UnsupportedError(
            "rope_parameters differ from layer to layer, which no supported graph runs; expected one set for "
            "all layers"
        )
    theta = _theta(config, found, default_theta)
    kind = found.get("rope_type", found.get("type", "default"))
    partial = found.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if kind not in KINDS:
        raise UnsupportedError(f"rope_type {kind!r} is not supported; expected one of {', '.join(KINDS)}")
    if partial not in (None, 1, 1.0):
        raise UnsupportedError(
            f"partial_rotary_factor {partial!r} is not supported; expected 1, the rotation of complete heads"
        )
    if kind == "default":
        return Rope(theta)
    factor = _positive(found.get("factor"), "rope factor")
    if kind == "linear":
        return Rope(theta, kind, factor)
    original = found.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    rope = Rope(
        theta,
        kind,
        factor,
        _positive(found.get("low_freq_factor"), "low_freq_factor"),
        _positive(found.get("high_freq_factor"), "high_freq_factor"),
        int(_positive(original or config.get("max_position_embeddings"), "original_max_position_embeddings")),
    )
    if rope.high <= rope.low:
        raise CheckpointError(
            f"config.json: high_freq_factor {rope.high} is not above low_freq_factor {rope.low}; check "
            "rope_parameters"
        )
    return rope


def read_alpha_rope(config: Mapping[str, Any], default_theta: float, head_dim: int) -> Rope:
    """As :func:`read_rope`, for HunYuan: type ``dynamic`` with an ``alpha`` only changes the base.

    The base is theta * alpha^(d / (d - 2)) for head_dim d, as in transformers'
    ``compute_ntk_alpha_rope_parameters``; the factor is not used.
    """
    found = _settings(config)
    if found.get("rope_type", found.get("type")) != "dynamic" or not found.get("alpha"):
        return read_rope(config, default_theta)
    alpha = _positive(found["alpha"], "rope alpha")
    if head_dim <= 2:
        raise CheckpointError(f"config.json: head_dim is {head_dim}; expected more than 2 with a rope alpha")
    scaled = _theta(config, found, default_theta) * alpha ** (head_dim / (head_dim - 2))
    return Rope(_positive(scaled, "rope_theta scaled by alpha"))


def llama3_divisors(rope: Rope, head_dim: int) -> npt.NDArray[np.float32]:
    """The divisor of each frequency under llama3 scaling: float32 ``[head_dim / 2]``.

    With wavelength w of a frequency f and the original context c: if w < c / high, f is unchanged; if
    w > c / low, it is divided by ``factor``; in between it becomes ``(1 - t) * f / factor + t * f`` with
    ``t = (c / w - low) / (high - low)`` (Llama 3.1; transformers' ``_compute_llama3_parameters``).
    """
    frequency = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = rope.original_context * frequency / (2 * math.pi)
    t = np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
    return (1 / ((1 - t) / rope.factor + t)).astype(np.float32)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    # old configs may have both; in transformers rope_scaling takes precedence, and rope_theta is a fallback
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json: rope_parameters is {found!r}; expected an object")
    return found


def _theta(config: Mapping[str, Any], found: Mapping[str, Any], default: float) -> float:
    theta = found.get("rope_theta", config.get("rope_theta"))
    return default if theta is None else _positive(theta, "rope_theta")


def _positive(value: Any, name: str) -> float:
    # GGUF stores it as float32
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-30 < value < 1e30:
        raise CheckpointError(f"config.json: {name} is {value!r}; expected a positive number")
    return float(value)
