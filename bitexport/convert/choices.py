"""The types that ``convert`` offers, and which tensors fit them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bitexport.checkpoint.packings import Scales
from bitexport.checkpoint.packings.scale_groups import unit_of
from bitexport.errors import UnsupportedError, UsageError
from bitexport.gguf.names import EXPERTS
from bitexport.gguf.packers.block_scale import fits_float16
from bitexport.gguf.types import (
    F32,
    I2_S,
    MAX_I2_S_ROW,
    TERNARY_KINDS,
    TYPES,
    TensorType,
    alternatives,
    has_scales,
    runs,
    smallest_exact,
)
from bitexport.gguf.writer import TensorSpec

#: The types that ternary tensors can be written as.
TERNARY_TYPES = tuple(kind.name for kind in TERNARY_KINDS)

#: The value of ``--type`` with which every ternary tensor gets the smallest type that holds it exactly.
AUTO = "auto"

#: The values of ``--type``, the default first.
TYPE_CHOICES = (AUTO, *TERNARY_TYPES)

#: The types of the token embedding and the output head that ``--embed-type`` offers.
EMBED_TYPES = ("q6_k", "q5_k", "q4_k", "q8_0", "f16")

#: The values of ``--embed-type``. With ``auto``, the default, ternary embeddings stay ternary, and others get
#: the first type of :data:`EMBED_AUTO` that fits.
EMBED_CHOICES = (AUTO, *EMBED_TYPES)
EMBED_AUTO = ("q6_k", "q8_0", "f16")


def check_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UsageError if ``value`` is not one of ``known``, the values that ``option`` accepts."""
    if value not in known:
        raise UsageError(f"{option} {value!r} is unknown; expected one of {', '.join(known)}")


def ternary_kind(name: str, shape: Sequence[int], scales: Scales, wanted: str) -> TensorType:
    """The type of one ternary tensor, after checking that it can store the tensor's shape and scales.

    Args:
        name: the tensor's name in the source, for messages.
        shape: ``[out, in]``, or ``[experts, out, in]``.
        wanted: one of :data:`TYPE_CHOICES`.

    Raises:
        UnsupportedError: the wanted type cannot store the tensor; the message names types that can.
    """
    in_range = scales.low is None or scales.high is None or fits_float16(scales.low, scales.high)
    if wanted == AUTO:
        group = scales.group
        if group is None and len(shape) != 2 and EXPERTS.fullmatch(name) is None:
            group = shape[-1]  # I2_S is only for matrices and experts
        kind = smallest_exact(shape, group)
        return kind if kind is I2_S or in_range else F32
    kind = TYPES[wanted]
    check_fits(name, shape, kind, embedding=False)
    if not has_scales(kind, scales.group):
        per = "one scale per tensor" if kind is I2_S else f"one scale per {kind.block} weights"
        raise UnsupportedError(
            f"tensor '{name}' has a scale per {unit_of(scales.group, shape[-1])}, but {kind.name} has {per}; "
            f"use --type {AUTO}" + (f" or {alternatives(shape, scales.group)}" if in_range else "")
        )
    if kind is not I2_S and not in_range:
        raise UnsupportedError(
            f"tensor '{name}' has scales from {scales.low:g} to {scales.high:g}, which float16 in "
            f"{kind.name} cannot hold; use --type {AUTO}, which chooses a type with float32 scales"
        )
    return kind


def check_fits(
    name: str, shape: Sequence[int], kind: TensorType, *, embedding: bool, target: str | None = None
) -> None:
    """Raise UnsupportedError, with the types that do fit, unless ``kind`` can store a tensor.

    Args:
        name: the tensor's name in the source.
        embedding: whether its type is that of ``--embed-type`` rather than ``--type``.
        target: its name in the output, if it is another one.
    """
    if kind is I2_S and len(shape) != 2 and EXPERTS.fullmatch(target or name) is None:
        others = " or ".join(
            other.name for other in TERNARY_KINDS if other is not I2_S and runs(other, shape)
        )
        raise UnsupportedError(
            f"tensor '{name}' of shape {list(shape)} cannot be i2_s, which is only for matrices and for the "
            f"experts of a mixture (blk.N.ffn_*_exps.weight); use --type {others}"
        )
    if runs(kind, shape):
        return
    if embedding:
        fitting = [choice for choice in EMBED_TYPES if TYPES[choice].fits(shape)]
        advice = f"--embed-type {' or '.join(fitting)}"
    else:
        advice = f"--type {alternatives(shape)}"
    raise UnsupportedError(
        f"tensor '{name}' of shape {list(shape)} cannot be {kind.name}, which needs {_needs(kind)}; use "
        f"{advice}"
    )


def _needs(kind: TensorType) -> str:
    if kind is I2_S:
        return (
            f"a multiple of {I2_S.block} weights in all (in each expert), rows of a multiple of 4 weights, "
            f"and rows of at most {MAX_I2_S_ROW}"
        )
    return f"rows of a multiple of {kind.block} weights"


def straddling_warnings(specs: Iterable[TensorSpec]) -> list[str]:
    """A warning if rows of I2_S tensors are not a whole number of blocks."""
    straddling = [spec for spec in specs if spec.type is I2_S and spec.shape[-1] % I2_S.block]
    if not straddling:
        return []
    sizes = ", ".join(map(str, sorted({spec.shape[-1] for spec in straddling})))
    return [
        f"{len(straddling)} I2_S tensors have rows of {sizes} weights, which is not a multiple of "
        f"{I2_S.block}: blocks straddle rows, which bitexport's runtime reads correctly and other I2_S "
        "runtimes do not"
    ]
