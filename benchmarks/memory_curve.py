#!/usr/bin/env python3
"""Draw convert's memory over time, from its first tensor to its last.

    python benchmarks/make_2b4t_checkpoint.py --master master
    python benchmarks/memory_curve.py master docs/convert-memory.png

Two lines: the memory that the process has allocated, and the pages of mapped files, which the system can
reclaim at any time. Both are flat, so larger models can be converted too: their height depends on the
largest tensor, not on the number of tensors.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bitexport.checkpoint.reader import open_checkpoint
from bitexport.convert import convert
from bitexport.progress import ProgressEvent

MIB = 1 << 20


class Sampler(threading.Thread):
    """Reads this process's memory twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.samples: list[tuple[float, int, int]] = []  # seconds, allocated, mapped from files: bytes

    def run(self) -> None:
        start = time.perf_counter()
        while not self.ended.wait(0.05):
            lines = Path("/proc/self/status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            allocated, mapped = (int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))
            self.samples.append((time.perf_counter() - start, allocated, mapped))


def measure(checkpoint: Path) -> list[tuple[float, int, int]]:
    """Convert, and return the samples."""
    sampler = Sampler()

    def started(event: ProgressEvent) -> None:  # noqa: ARG001
        if not sampler.is_alive() and not sampler.ended.is_set():
            sampler.start()

    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
        convert(checkpoint, Path(folder) / "out.gguf", progress=started)
    sampler.ended.set()
    sampler.join()
    return sampler.samples


def draw(samples: list[tuple[float, int, int]], title: str, target: Path) -> None:
    """Draw memory over time."""
    seconds = [sample[0] for sample in samples]
    figure, axes = plt.subplots(figsize=(8, 3.6), dpi=120)
    for values, label, colour in (
        ([sample[1] / MIB for sample in samples], "allocated", "tab:blue"),
        ([sample[2] / MIB for sample in samples], "pages of files, reclaimable", "tab:gray"),
    ):
        axes.plot(
            seconds, values, label=f"{label}: at most {max(values):,.0f} MiB", color=colour, linewidth=1.2
        )
    axes.set(xlabel="seconds", ylabel="MiB resident", title=title, xlim=(0, max(seconds)))
    axes.set_ylim(0, 1.3 * max(max(sample[1:]) for sample in samples) / MIB)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", ncols=2)
    figure.tight_layout()
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("picture", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    size = sum(file.stat().st_size for file in arguments.checkpoint.glob("*.safetensors"))
    tensors = len(open_checkpoint(arguments.checkpoint).tensors)
    samples = measure(arguments.checkpoint)
    draw(samples, f"bitexport convert, {tensors} tensors, {size / 1e9:.2f} GB", arguments.picture)
    print(
        f"{arguments.picture}: {samples[-1][0]:.0f} s, {max(s[1] for s in samples) / MIB:.0f} MiB allocated"
    )


if __name__ == "__main__":
    main()
