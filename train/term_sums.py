"""The terms of the loss between two lines of the log."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

_MICRO_BATCHES = "micro_batches"
_WEIGHTED = "weighted_"


class TermSums:
    """Sums of every term, raw and weighted, over the micro-batches since the last line of the log.

    In :attr:`values`, a term's raw sum has the name of the term, its weighted sum ``weighted_`` in front, and
    ``micro_batches`` is the number of micro-batches. What is added stays on the device until :meth:`collect`,
    which all other methods call.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = defaultdict(float)
        self._on_device: dict[tuple[str, ...], torch.Tensor] = {}  # float64 [raw and weighted terms]

    def add(self, raw: dict[str, torch.Tensor], weighted: dict[str, torch.Tensor]) -> None:
        """Add the terms of one micro-batch, scalars; waits for nothing."""
        self.values[_MICRO_BATCHES] += 1
        names = tuple(raw)
        terms = [raw[name] for name in names] + [weighted[name] for name in names]
        stacked = torch.stack([term.detach() for term in terms]).double()
        sums = self._on_device.get(names)
        self._on_device[names] = stacked if sums is None else sums + stacked

    def collect(self) -> None:
        """Add to :attr:`values` what is still on the device."""
        for names, sums in self._on_device.items():
            labels = [*names, *(_WEIGHTED + name for name in names)]
            for label, value in zip(labels, sums.tolist(), strict=True):
                self.values[label] += value
        self._on_device.clear()

    def take_means(self) -> dict[str, float]:
        """The means over the micro-batches and, as ``loss``, the weighted total; resets the sums."""
        self.collect()
        count = max(1.0, self.values.pop(_MICRO_BATCHES))  # 0 in all processes but the first
        means = {name: total / count for name, total in self.values.items()}
        means["loss"] = sum(value for name, value in means.items() if name.startswith(_WEIGHTED))
        self.values.clear()
        return means

    def move_to_main_process(self, accelerator: Any) -> None:
        """Add the sums of all processes in the main one, which writes the log and the checkpoints."""
        self.collect()
        if accelerator.num_processes == 1 or not self.values:
            return
        names = sorted(self.values)
        local = torch.tensor([self.values[name] for name in names], dtype=torch.float64)
        totals = accelerator.reduce(local.to(accelerator.device), "sum").tolist()
        for name, total in zip(names, totals, strict=True):
            self.values[name] = total if accelerator.is_main_process else 0.0

    def save(self, path: Path) -> None:
        self.collect()
        path.write_text(json.dumps(self.values))

    def load(self, path: Path) -> None:
        self.values.update(json.loads(path.read_text()))
