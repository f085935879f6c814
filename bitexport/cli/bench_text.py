"""What the reports of ``bitexport bench`` have in common."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bitexport.cli.output import Output, counted


def model_name(path: str, description: str) -> str:
    """The file's name and llama.cpp's description, which writes ?B for sizes that it does not know."""
    return f"{Path(path).name}, {description.replace(' ?B', '')}"


def threads_text(count: int) -> str:
    return counted(count, "thread")


def short_rate(tokens_per_second: float) -> str:
    """One decimal, and none from a thousand on, for tables with many columns."""
    return f"{tokens_per_second:.1f}" if tokens_per_second < 999.95 else f"{tokens_per_second:.0f}"


def short_ratio(ratio: float) -> str:
    """Three digits, at most two of them decimals."""
    return f"{ratio:.{2 if ratio < 9.995 else 1 if ratio < 99.95 else 0}f}"


def show_load(out: Output, load: int, shares: Iterable[tuple[int, float]]) -> None:
    """The busy processes, and what is fair for the threads beside them."""
    if load == 0:
        return
    fair = ", ".join(f"{share:.0%} for {threads_text(threads)}" for threads, share in sorted(set(shares)))
    out.wrapped(
        f"beside {counted(load, 'busy process', 'busy processes')}, which paused while limits were measured; "
        f"a thread's fair share of a processor: {fair}"
    )
