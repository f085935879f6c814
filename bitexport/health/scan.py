"""Looks for signs in a complete checkpoint or GGUF file, without converting it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.packings import Packing, keeps_float, packing_of
from bitexport.checkpoint.reader import FLOAT_DTYPES
from bitexport.checkpoint.shards import read_json
from bitexport.errors import BitexportError, CheckpointError, GGUFError, UnsupportedError
from bitexport.families import Claim, Role, family_of
from bitexport.gguf.dequantize import (
    BLOCK_TERNARY_TYPES,
    can_dequantize,
    dequantize,
    dequantize_rows,
    rows_per_chunk,
)
from bitexport.gguf.names import TOKEN_EMBEDDING
from bitexport.gguf.packers import i2_s
from bitexport.gguf.reader import Array, GGUFFile, GGUFTensor
from bitexport.gguf.types import I2_S
from bitexport.health.sidecars import check_trainer_state, check_vocabulary
from bitexport.health.signs import Finding
from bitexport.health.tensors import Health
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.ternary import TernaryTensor


def scan_checkpoint(checkpoint: Checkpoint, progress: Progress = ignore) -> list[Finding]:
    """Check every tensor of a checkpoint, and the files next to the weights.

    A tensor that cannot be read is a finding. If no family or packing claims the checkpoint, all its tensors
    are checked as floats.
    """
    health = Health()
    packing, claims = _ternary_claims(checkpoint)
    partners = {part for name in claims for part in (packing.partners(name) if packing else ())}
    weights = {packing.stored_name(name): name for name in claims} if packing else {}
    total = checkpoint.nbytes
    done = 0
    for name, info in checkpoint.tensors.items():
        progress(ProgressEvent(done, total, "B", name))
        done += info.nbytes
        try:
            if packing is not None and name in weights:
                _check_ternary(checkpoint, packing, weights[name], name)
                health.ternary(name, packing.unpack(checkpoint, weights[name]))
            elif info.dtype in FLOAT_DTYPES and name not in partners:
                for piece in _pieces(checkpoint, name):
                    health.floats(name, piece)
        except (CheckpointError, UnsupportedError) as error:
            health.failed(name, error)
    check_trainer_state(health, checkpoint.path)
    ids = checkpoint.config.get("vocab_size")
    embedding = _embedding(checkpoint)
    check_vocabulary(
        health,
        ids=ids if isinstance(ids, int) else None,
        tokens=_tokens(checkpoint.path / "tokenizer.json"),
        embeddings=checkpoint.tensors[embedding].shape[0] if embedding else None,
    )
    return health.findings()


def _check_ternary(checkpoint: Checkpoint, packing: Packing, weight: str, stored: str) -> None:
    """Check what :meth:`Packing.unpack` relies on, which the plan of a conversion checks as well."""
    packing.check(checkpoint, weight)
    shape = checkpoint.info(stored).shape
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(
            f"tensor '{stored}' has shape {list(shape)}; expected a matrix: save the checkpoint again"
        )


def _ternary_claims(checkpoint: Checkpoint) -> tuple[Packing | None, dict[str, Claim]]:
    """The packing, and the tensors that are stored in it; (None, {}) if config.json does not say."""
    try:
        family = family_of(checkpoint.config, checkpoint.tensors)
        packing = packing_of(checkpoint)
        claims = family.claims(family.hyperparameters(checkpoint.config, checkpoint.tensors))
        return packing, {
            claim.source: claim
            for claim in claims
            if packing.holds(checkpoint, claim.source)
            or (claim.role is Role.TERNARY and not keeps_float(checkpoint, claim.source))
        }
    except BitexportError:
        return None, {}


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[npt.NDArray[np.float32]]:
    shape = checkpoint.info(name).shape
    if not shape:
        yield checkpoint.read(name)
    else:
        yield from checkpoint.read_rows(name, rows_per_chunk(shape))


def _embedding(checkpoint: Checkpoint) -> str | None:
    found = (name for name in checkpoint.tensors if name.endswith("embed_tokens.weight"))
    name = next(found, None)
    return name if name and checkpoint.tensors[name].shape else None


def _tokens(path: Path) -> int | None:
    """A tokenizer's largest id plus one; None if there is no readable tokenizer."""
    try:
        found = read_json(path)
        vocabulary, added = found["model"]["vocab"], found.get("added_tokens") or []
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return max([*ids, *(token["id"] for token in added)], default=-1) + 1
    except (CheckpointError, LookupError, TypeError, AttributeError):  # convert reports what is wrong
        return None


def scan_gguf(file: GGUFFile, progress: Progress = ignore) -> list[Finding]:
    """Check every tensor of a GGUF file, and the size of its vocabulary."""
    health = Health()
    total = sum(tensor.nbytes for tensor in file.tensors)
    done = 0
    for tensor in file.tensors:
        progress(ProgressEvent(done, total, "B", tensor.name))
        done += tensor.nbytes
        try:
            _check_tensor(health, file, tensor)
        except (GGUFError, UnsupportedError) as error:
            health.add(error.sign, tensor.name, str(error))
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    ids = file.metadata.get(f"{file.metadata.get('general.architecture')}.vocab_size")
    embedding = next((tensor.shape[0] for tensor in file.tensors if tensor.name == TOKEN_EMBEDDING), None)
    check_vocabulary(
        health,
        ids=ids if isinstance(ids, int) else None,
        tokens=tokens.length if isinstance(tokens, Array) else None,
        embeddings=embedding,
        place=file.path.name,
    )
    return health.findings()


def _check_tensor(health: Health, file: GGUFFile, tensor: GGUFTensor) -> None:
    if tensor.type is I2_S and len(tensor.shape) > 1:  # experts are stacked into one matrix
        shape = (math.prod(tensor.shape[:-1]), tensor.shape[-1])
        health.ternary(tensor.name, i2_s.unpack(file.data(tensor), shape))
        return
    if not can_dequantize(tensor.type):
        return
    ternary = tensor.type.name in BLOCK_TERNARY_TYPES
    for values in [dequantize(file, tensor)] if ternary else dequantize_rows(file, tensor):
        if not np.isfinite(values.sum(dtype=np.float64)):
            bad = values[~np.isfinite(values)][0]
            health.add("not-finite", tensor.name, f"holds {bad}")
            return
        if ternary:
            health.ternary(tensor.name, _as_ternary(values))
        else:
            health.floats(tensor.name, values)


def _as_ternary(values: npt.NDArray[np.float32]) -> TernaryTensor:
    """A tensor from its values; the type stores a scale with every block, but all are the tensor's scale."""
    return TernaryTensor(np.sign(values).astype(np.int8), np.float32(np.abs(values).max(initial=0)))
