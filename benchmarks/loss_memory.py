"""Memory that the chunked losses save: peak and time of one pass, full against chunked.

Usage: loss_memory.py [--vocabulary 128000] [--tokens 2048] [--hidden 256,1024] [--chunk 256] [--k 256]

Prints a table in Markdown: the peak of resident memory (VmHWM) of a process that does one forward and
backward pass in float32 on the CPU and nothing else; each figure is from a new process. All tokens are
counted. "top k of the teacher" has no backward pass. "inputs" is the memory of such a process before the
pass.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from bitexport.train.objective.chunked import chunked_next_token, chunked_top_k, chunked_top_k_distillation
from bitexport.train.objective.losses import next_token, top_k_logits_distillation

LOSSES = ("next token", "top k of the teacher", "top-k distillation")


def run(loss: str, form: str, hidden: Tensor, weight: Tensor, k: int, chunk: int) -> None:
    """One pass of ``loss``; ``form`` is "full" or "chunked"."""
    positions, vocabulary = hidden.shape[1], len(weight)
    labels = torch.arange(positions)[None] % vocabulary
    if loss == "top k of the teacher":
        with torch.no_grad():
            if form == "full":
                (hidden @ weight.T).topk(k)
            else:
                chunked_top_k(hidden, weight, k, chunk)
        return
    if loss == "next token":
        if form == "full":
            value = next_token(hidden @ weight.T, labels)
        else:
            value = chunked_next_token(hidden, weight, labels, chunk)
    else:
        values = torch.linspace(5, 0, k).expand(1, positions, k)
        indices = torch.randint(vocabulary, (1, positions, k))
        if form == "full":
            value = top_k_logits_distillation(hidden @ weight.T, values, indices, labels)
        else:
            value = chunked_top_k_distillation(hidden, weight, values, indices, labels, chunk)
    value.backward()


def resident(name: str) -> float:
    """VmRSS or VmHWM in MiB; ru_maxrss would be the parent's if that was larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def measure(options: argparse.Namespace) -> None:
    """In a new process: print MiB before the pass, MiB at the peak, seconds."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    hidden = torch.randn(1, options.tokens + 1, int(options.hidden), requires_grad=True)
    weight = (torch.randn(options.vocabulary, int(options.hidden)) * 0.02).requires_grad_()
    before = resident("VmRSS")
    start = time.perf_counter()
    run(options.loss, options.form, hidden, weight, options.k, options.chunk)
    seconds = time.perf_counter() - start
    print(before, resident("VmHWM"), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", default="256,1024", help="hidden sizes, separated by commas")
    parser.add_argument("--chunk", type=int, default=256, help="tokens per chunk")
    parser.add_argument("--k", type=int, default=256)
    parser.add_argument("--loss", choices=LOSSES, help=argparse.SUPPRESS)
    parser.add_argument("--form", choices=("full", "chunked"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loss:
        measure(options)
        return
    print("| loss | hidden | inputs, MiB | full, MiB | chunked, MiB | saved, MiB | full, s | chunked, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for hidden in options.hidden.split(","):
        for loss in LOSSES:
            figures = []
            for form in ("full", "chunked"):
                command = [sys.executable, __file__, *sys.argv[1:]]
                command += ["--hidden", hidden, "--loss", loss, "--form", form]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                figures.append([float(figure) for figure in done.stdout.split()])
            (before, full, slow), (_, chunked, fast) = figures
            sizes = [before, full, chunked, full - chunked]
            cells = [loss, hidden, *(f"{size:,.0f}" for size in sizes), f"{slow:.1f}", f"{fast:.1f}"]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
