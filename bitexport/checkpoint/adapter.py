"""Reads a LoRA adapter that PEFT saved, and merges it into the weights of its base model as they are read.

    W' = W + s * B A        s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora

with A ``[r, in]`` and B ``[out, r]``. In an embedding A is ``[r, vocabulary]`` and B ``[width, r]``, and the
product is transposed; so it is in a layer that stores its weight as ``[in, out]`` (``fan_in_fan_out``). DoRA
then scales every row of W' to the length in its magnitude vector. Modules in ``modules_to_save`` were trained
completely, and their tensors replace those of the base.

The sums are in float32. Source: the LoRA, rsLoRA and DoRA papers (arXiv 2106.09685, 2312.03732, 2402.09353).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.folders import ADAPTER_CONFIG
from bitexport.checkpoint.patterns import check_patterns
from bitexport.checkpoint.reader import FLOAT_DTYPES, Checkpoint
from bitexport.checkpoint.safetensors import TensorInfo
from bitexport.checkpoint.shards import inside, read_json, read_shard
from bitexport.checkpoint.spelling import respell
from bitexport.errors import CheckpointError, UnsupportedError

#: The names of an adapter's weights, in the order in which they are preferred.
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

#: Initializations that leave the base model's weights as they are; others change them.
HARMLESS_STARTS = ("True", "False", "gaussian", "eva", "orthogonal")

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
)

_MERGE = "merge it in PEFT with model.merge_and_unload(), save that and convert it"


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one weight.

    Attributes:
        left: ``[rows, r]``, float32.
        right: ``[r, columns]``, float32, times s.
        magnitude: the length of every row (DoRA), float32; None without.
    """

    left: npt.NDArray[np.float32]
    right: npt.NDArray[np.float32]
    magnitude: npt.NDArray[np.float32] | None

    def merged(self, weights: npt.NDArray[np.float32], first_row: int) -> npt.NDArray[np.float32]:
        """Some ``weights`` ``[n, columns]``, from ``first_row`` on, with the change."""
        rows = slice(first_row, first_row + len(weights))
        changed = weights + self.left[rows] @ self.right
        if self.magnitude is not None:
            lengths = np.sqrt(np.square(changed, dtype=np.float64).sum(axis=1)).astype(np.float32)
            changed *= (self.magnitude[rows] / lengths)[:, np.newaxis]
        return changed


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """A checkpoint whose weights are read with an adapter merged into them.

    Attributes:
        adapter: the adapter's folder.
        changes: by the normalized name of the weight.
        replaced: the normalized names of the tensors that are the adapter's own.
    """

    adapter: Path
    changes: Mapping[str, LowRank] = field(repr=False)
    replaced: tuple[str, ...]

    def read(self, name: str) -> npt.NDArray[Any]:
        """As :meth:`Checkpoint.read`."""
        values = super().read(name)
        change = self.changes.get(name)
        return values if change is None else change.merged(values, 0)

    def read_rows(self, name: str, rows: int) -> Iterator[npt.NDArray[Any]]:
        """As :meth:`Checkpoint.read_rows`."""
        change = self.changes.get(name)
        first = 0
        for values in super().read_rows(name, rows):
            yield values if change is None else change.merged(values, first)
            first += len(values)

    def same_bytes(self, first: str, second: str) -> bool:
        """As :meth:`Checkpoint.same_bytes`; a weight that the adapter changes is the same as no other."""
        return not {first, second} & self.changes.keys() and super().same_bytes(first, second)


def merge_adapter(checkpoint: Checkpoint, folder: str | Path) -> MergedCheckpoint:
    """``checkpoint`` with the LoRA adapter in ``folder``.

    Raises:
        CheckpointError: there is no adapter, it is damaged, or does not belong to the checkpoint.
        UnsupportedError: it is not one of the kinds that the module's formula covers.
    """
    place = Path(folder)
    config = _read_config(place)
    tensors = _read_tensors(place)
    parts: dict[str, dict[str, TensorInfo]] = {}
    whole: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{place}: tensor '{name}' has dtype {info.dtype}; expected {', '.join(FLOAT_DTYPES)}"
            )
        if match := _PART.fullmatch(name):
            kind = match["part"].replace("embedding_", "")
            module = match["module"] + (" (embedding)" if "embedding" in match["part"] else "")
            parts.setdefault(module, {})[kind] = info
        else:
            plain = name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
            whole[plain] = info
    files = Checkpoint(place, config, MappingProxyType(tensors))
    replaced: dict[str, TensorInfo] = {}
    for name, info in whole.items():
        normalized, shape = _in_base(checkpoint, place, name)
        _check_shape(place, info.name, info.shape, shape, normalized)
        replaced[normalized] = info
    base = replace(checkpoint, tensors=MappingProxyType({**checkpoint.tensors, **replaced}))
    changes: dict[str, LowRank] = {}
    for module, found in parts.items():
        name, _ = _in_base(base, place, f"{module.removesuffix(' (embedding)')}.weight")
        changes[name] = _low_rank(base, files, name, module, found)
    return MergedCheckpoint(
        base.path,
        base.config,
        base.tensors,
        place,
        MappingProxyType(changes),
        tuple(replaced),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: no {ADAPTER_CONFIG}; expected the folder of an adapter, saved with PEFT's "
            "save_pretrained"
        )
    config = read_json(folder / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"{folder}: the adapter is of type {kind!r}; expected 'LORA': {_MERGE}")
    start = config.get("init_lora_weights", True)
    if str(start) not in HARMLESS_STARTS:
        raise UnsupportedError(
            f"{folder}: init_lora_weights {start!r} changed the base model's weights before training; "
            f"expected an adapter for the unchanged ones: {_MERGE}"
        )
    known = ("use_rslora", "use_dora")
    others = [key for key, value in config.items() if key.startswith("use_") and value and key not in known]
    others += [key for key in ("alora_invocation_tokens", "layer_replication") if config.get(key)]
    if others:
        raise UnsupportedError(
            f"{folder}: {ADAPTER_CONFIG} sets {others[0]} to {config[others[0]]!r}; expected a plain LoRA, "
            f"with use_rslora and use_dora at most: {_MERGE}"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise CheckpointError(f"{folder}: {ADAPTER_CONFIG}: {key} is {config[key]!r}; expected an object")
    return config


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_shard(inside(folder, name, ADAPTER_CONFIG))
    raise CheckpointError(f"{folder}: no {' or '.join(WEIGHTS)}; download the adapter again")


def _in_base(checkpoint: Checkpoint, folder: Path, name: str) -> tuple[str, tuple[int, ...]]:
    """The normalized name of the base model's weight with ``name``, and its shape."""
    (normalized,) = respell({name: None})
    # a tied head that was trained by itself is not tied any more, which the conversion notices
    found = EMBEDDING if normalized == HEAD and HEAD not in checkpoint.tensors else normalized
    if found not in checkpoint.tensors:
        raise CheckpointError(
            f"{folder}: the adapter changes '{normalized}', which {checkpoint.path} does not have; expected "
            "an adapter for this model: give its base model (base_model_name_or_path in adapter_config.json)"
        )
    return normalized, checkpoint.info(found).shape


def _low_rank(
    checkpoint: Checkpoint, files: Checkpoint, name: str, module: str, parts: Mapping[str, TensorInfo]
) -> LowRank:
    folder = files.path
    if not {"lora_A", "lora_B"} <= parts.keys():
        raise CheckpointError(f"{folder}: '{module}' has only {', '.join(parts)}; download the adapter again")
    a = files.read(parts["lora_A"].name)
    b = files.read(parts["lora_B"].name)
    shape = checkpoint.info(name).shape
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise CheckpointError(
            f"{folder}: '{module}' has A {list(a.shape)} and B {list(b.shape)}; expected [r, in] and [out, "
            "r]: download the adapter again"
        )
    transposed = module.endswith(" (embedding)")
    if files.config.get("fan_in_fan_out") and not transposed:
        # PEFT corrects the setting for an ordinary linear layer; a square weight does not show which it is
        if a.shape[1] == b.shape[0]:
            raise UnsupportedError(
                f"{folder}: fan_in_fan_out is true and '{name}' is square, so that its orientation is "
                f"unknown; expected fan_in_fan_out false: {_MERGE}"
            )
        transposed = shape == (a.shape[1], b.shape[0])
    left, right = (a.T, b.T) if transposed else (b, a)
    _check_shape(folder, module, (left.shape[0], right.shape[1]), shape, name)
    magnitude = _magnitude(files, name, parts, rows=shape[0], transposed=transposed)
    return LowRank(left, right * np.float32(_scaling(files, module, a.shape[0])), magnitude)


def _magnitude(
    files: Checkpoint, name: str, parts: Mapping[str, TensorInfo], *, rows: int, transposed: bool
) -> npt.NDArray[np.float32] | None:
    info = parts.get("lora_magnitude_vector")
    if bool(files.config.get("use_dora")) != (info is not None):
        raise CheckpointError(
            f"{files.path}: use_dora is {files.config.get('use_dora')!r}, but '{name}' has "
            f"{'a' if info else 'no'} magnitude vector; download the adapter again"
        )
    if info is None:
        return None
    if transposed:
        raise UnsupportedError(f"{files.path}: DoRA on '{name}', whose weight is transposed: {_MERGE}")
    magnitude = files.read(info.name).reshape(-1)
    _check_shape(files.path, info.name, magnitude.shape, (rows,), name)
    return magnitude


def _scaling(files: Checkpoint, module: str, rank: int) -> float:
    """s of the module's formula."""
    alpha = files.config.get("lora_alpha")
    plain = module.removeprefix("base_model.model.").removesuffix(" (embedding)")
    alphas = files.config.get("alpha_pattern") or {}
    check_patterns(f"{files.path}: alpha_pattern", list(alphas))
    for pattern, value in alphas.items():
        try:
            found = re.fullmatch(rf"(.*\.)?({pattern})", plain)
        except (re.error, RecursionError) as error:
            raise CheckpointError(
                f"{files.path}: alpha_pattern has an invalid name {pattern!r} ({error}); expected module "
                "names"
            ) from error
        if found:
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{files.path}: lora_alpha is {alpha!r}; expected a number: correct it")
    return alpha / (math.sqrt(rank) if files.config.get("use_rslora") else rank)


def _check_shape(
    folder: Path, what: str, found: tuple[int, ...], expected: tuple[int, ...], name: str
) -> None:
    if found != expected:
        raise CheckpointError(
            f"{folder}: '{what}' is for a weight of shape {list(found)}, but '{name}' has {list(expected)}; "
            "the adapter belongs to another model, or the vocabulary was resized: give its base model"
        )
