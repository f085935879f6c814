"""Divides a model's layers among machines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bitexport.errors import UnsupportedError, UsageError
from bitexport.gguf.reader import GGUFFile
from bitexport.runtime.limits import cache_bytes

_LAYER = re.compile(r"blk\.(\d+)\.")

#: For activations and the largest message.
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that computes layers.

    Attributes:
        name: for messages.
        free_bytes: of its memory; None if unknown.
    """

    name: str
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Which machine computes how many layers: this one the first ones, then each worker the next.

    This machine also looks up the tokens and computes the head.

    Attributes:
        layers: of this machine and of each worker.
    """

    layers: tuple[int, ...]

    @property
    def n_gpu_layers(self) -> int:
        """llama.cpp's number for it, which counts the head."""
        return sum(self.layers[1:]) + 1

    @property
    def tensor_split(self) -> list[float]:
        """llama.cpp's shares for it, one for each worker. The last one counts the head."""
        return [float(count) for count in (*self.layers[1:-1], self.layers[-1] + 1)]


def place(file: GGUFFile, machines: Sequence[Machine], layers: Sequence[int], n_ctx: int) -> Placement:
    """Divide a model's layers as evenly as memory allows, or as given.

    Args:
        file: the model's header.
        machines: this one, then the workers.
        layers: for each machine; empty to let this function choose.
        n_ctx: tokens of all sequences together, for the memory of the cache.

    Raises:
        UsageError: ``layers`` does not fit the model or the machines; or there are fewer layers than
            machines.
        UnsupportedError: the machines together have too little memory.
    """
    count = _layer_count(file)
    if layers:
        return _as_given(layers, count, machines)
    if count < len(machines):
        raise UsageError(
            f"{file.path.name} has {count} layers, too few for {len(machines)} machines; use fewer workers"
        )
    per_layer = _layer_bytes(file, count) + n_ctx * cache_bytes(file.metadata)
    rest = sum(tensor.nbytes for tensor in file.tensors if not _LAYER.match(tensor.name))
    room = []
    for index, machine in enumerate(machines):
        if machine.free_bytes is None:
            room.append(count)
            continue
        free = machine.free_bytes - _SPARE_BYTES - (rest if index == 0 else 0)
        room.append(min(count, max(1, free // max(per_layer, 1))))
    if sum(room) < count:
        have = ", ".join(f"{machine.name} {_gib(machine.free_bytes or 0)}" for machine in machines)
        raise UnsupportedError(
            f"{file.path.name} needs about {_gib(count * per_layer + rest)}, and the machines have {have}; "
            "add a worker, lend more of its memory with --memory, or use a smaller context"
        )
    return Placement(tuple(_evenly(count, room)))


def _evenly(count: int, room: Sequence[int]) -> list[int]:
    found = [0] * len(room)
    for _ in range(count):
        # the fewest first; among equals the last, as this machine also has the head
        index = min((at for at in range(len(room)) if found[at] < room[at]), key=lambda at: (found[at], -at))
        found[index] += 1
    return found


def _as_given(layers: Sequence[int], count: int, machines: Sequence[Machine]) -> Placement:
    text = ",".join(map(str, layers))
    if len(layers) != len(machines):
        raise UsageError(
            f"the layers {text} are for {len(layers)} machines, but there are {len(machines)}: this one and "
            f"{len(machines) - 1} of the workers; give a number for each"
        )
    if min(layers) < 1 or sum(layers) != count:
        raise UsageError(
            f"the layers are {text}, {sum(layers)} together; expected {count}, as many as the model has, "
            "and 1 or more for each machine"
        )
    return Placement(tuple(layers))


def _layer_count(file: GGUFFile) -> int:
    found = file.metadata.get(f"{file.metadata.get('general.architecture')}.block_count")
    return found if isinstance(found, int) else 0


def _layer_bytes(file: GGUFFile, count: int) -> int:
    """Bytes of the largest layer's tensors."""
    sizes = [0] * max(count, 1)
    for tensor in file.tensors:
        layer = _LAYER.match(tensor.name)
        if layer and int(layer[1]) < len(sizes):
            sizes[int(layer[1])] += tensor.nbytes
    return max(sizes)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
