"""``bitexport bench --decode block``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitexport.cli.bench_text import short_rate, short_ratio
from bitexport.cli.output import Output, counted
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.bench.blocks import BlockBenchReport
    from bitexport.blocks import BlockRule


def run_blocks(
    out: Output,
    gguf: Path,
    *,
    prompts: Path | None,
    rules: str,
    threads: list[int],
    tokens: int,
    rounds: int,
) -> None:
    """Measure and show; ``prompts`` is a file with one prompt per line, or None for the built-in ones."""
    from bitexport.bench.blocks import bench_blocks
    from bitexport.text.prompts import built_in_prompts, read_prompts

    texts = built_in_prompts() if prompts is None else read_prompts(prompts)
    with out.progress("bench") as progress:
        report = bench_blocks(
            gguf,
            texts,
            rules=_rules(rules),
            threads=threads,
            max_tokens=tokens,
            rounds=rounds,
            progress=progress,
        )
    out.result(report.to_json(), human=lambda: _show(out, report))


def _rules(text: str) -> list[BlockRule]:
    """``"greedy,confidence:0.8"`` -> two rules."""
    from bitexport.blocks.rules import rule_of

    found = []
    for part in text.split(","):
        name, _, threshold = part.strip().partition(":")
        try:
            found.append(rule_of(name, float(threshold) if threshold else None))
        except ValueError as error:
            raise UsageError(
                f"--rules has {part.strip()!r}; expected a rule, or a rule and its threshold such as "
                "confidence:0.8"
            ) from error
    return found


def _show(out: Output, report: BlockBenchReport) -> None:
    columns = ["rule", "threads", "per pass", "plain", "blocks", "ratio", "range"]
    rows = [
        (
            row.rule if row.rule == "greedy" else f"{row.rule}:{row.threshold:g}",
            row.threads,
            f"{row.tokens_per_pass:.2f}",
            short_rate(row.plain_tokens_per_second),
            short_rate(row.tokens_per_second),
            f"{short_ratio(row.ratio)}x",
            f"{short_ratio(row.ratio_min)} .. {short_ratio(row.ratio_max)}",
        )
        for row in report.rows
    ]
    out.wrapped(f"{Path(report.path).name}, {report.model.replace(' ?B', '')}: blocks of {report.block_size}")
    out.table(columns, rows, right=columns[1:], markdown=True)
    fewest, most = (end(row.tokens for row in report.rows) for end in (min, max))
    tokens = counted(most, "token") if fewest == most else f"{fewest:,} to {most:,} tokens"
    out.wrapped(
        f"per pass: tokens per evaluation; plain, blocks: tokens per second from prompt to end, of "
        f"{counted(report.prompts, 'prompt')} and {tokens}; ratio: blocks divided by plain, median and range "
        f"over {counted(report.rounds, 'alternating round')}; {report.tier} kernels"
    )
