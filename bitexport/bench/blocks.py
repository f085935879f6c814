"""How much faster is decoding in blocks than token by token, and how many tokens does a pass settle?"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitexport.bench.measure import in_progress
from bitexport.blocks import BlockDecoding, BlockRule
from bitexport.errors import UsageError
from bitexport.gguf.fingerprint import fingerprint
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.runtime.block_session import BlockSession
from bitexport.runtime.session import Session
from bitexport.runtime.threads import default_threads
from bitexport.system.machine import cpu_model

DEFAULT_RULES = (BlockRule("greedy"), BlockRule("confidence"), BlockRule("adaptive"))


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One rule with one number of threads.

    Attributes:
        rule, threshold: of the rule.
        threads: the number of threads.
        tokens: generated for all prompts.
        passes: evaluations, those of the prompts' full blocks left out.
        tokens_per_second: from prompt to end, the median over rounds.
        plain_tokens_per_second: the same, token by token.
        ratio, ratio_min, ratio_max: one divided by the other: median and range over alternating rounds.
    """

    rule: str
    threshold: float
    threads: int
    tokens: int
    passes: int
    tokens_per_second: float
    plain_tokens_per_second: float
    ratio: float
    ratio_min: float
    ratio_max: float

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / self.passes if self.passes else 0.0


@dataclass(frozen=True)
class BlockBenchReport:
    """The result of :func:`bench_blocks`."""

    path: str
    model: str
    tier: str
    cpu: str
    fingerprint: str
    block_size: int
    prompts: int
    rounds: int
    rows: list[BlockRow]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        rows = [{**asdict(row), "tokens_per_pass": row.tokens_per_pass} for row in self.rows]
        return {**asdict(self), "rows": rows}


def bench_blocks(
    gguf: str | os.PathLike[str],
    prompts: Sequence[str],
    *,
    rules: Sequence[BlockRule] = DEFAULT_RULES,
    threads: Sequence[int] = (),
    max_tokens: int = 64,
    rounds: int = 5,
    progress: Progress = ignore,
) -> BlockBenchReport:
    """Continue each prompt in blocks and token by token, in alternating rounds, with the most likely tokens.

    Both run to an end of text or to the limit. The two texts may differ, and their lengths, too.

    Args:
        gguf: a model of block diffusion.
        prompts: at least one.
        rules: which tokens to settle in a pass.
        threads: thread counts; one per core if empty.
        max_tokens: the most tokens of each continuation.
        rounds: timed rounds, after one that warms up.
        progress: called for every round.

    Raises:
        UsageError: the file is a plain model, a prompt does not fit the context, or there is nothing to
            measure.
        GGUFError, NativeLibraryError: the file cannot be loaded.
    """
    counts = list(threads) or [default_threads()]
    if not prompts or not rules or min(max_tokens, rounds, *counts) < 1:
        raise UsageError("expected at least one prompt, one rule, one token, one round and one thread")
    with BlockSession(gguf, exact=False) as blocks, Session(gguf, exact=False) as plain:
        ids_of = [plain.tokenize(prompt) for prompt in prompts]
        longest = max(map(len, ids_of))
        if min(map(len, ids_of)) < 1 or longest + max_tokens > plain.n_ctx:
            raise UsageError(
                f"the longest prompt has {longest} tokens, which with {max_tokens} more exceed the context "
                f"of {plain.n_ctx}, or a prompt has none; give other prompts, or fewer tokens"
            )
        rows = []
        for done, count in enumerate(counts):
            blocks.set_threads(count)
            plain.set_threads(count)
            for index, rule in enumerate(rules):
                step = done * len(rules) + index
                label = in_progress(rule.name, count)
                progress(ProgressEvent(step, len(counts) * len(rules), "rules", label))
                rows.append(_measure(blocks, plain, ids_of, rule, count, max_tokens, rounds))
        return BlockBenchReport(
            path=os.fspath(gguf),
            model=plain.description,
            tier=plain.tier,
            cpu=cpu_model(),
            fingerprint=fingerprint(gguf),
            block_size=blocks.diffusion.block_size,
            prompts=len(prompts),
            rounds=rounds,
            rows=rows,
        )


def _measure(
    blocks: BlockSession,
    plain: Session,
    ids_of: Sequence[Sequence[int]],
    rule: BlockRule,
    threads: int,
    max_tokens: int,
    rounds: int,
) -> BlockRow:
    speeds: list[float] = []
    plain_speeds: list[float] = []
    tokens = passes = 0
    for number in range(rounds + 1):
        start = time.perf_counter()
        plain_tokens = sum(_token_by_token(plain, ids, max_tokens) for ids in ids_of)
        middle = time.perf_counter()
        found = [_in_blocks(blocks, ids, rule, max_tokens) for ids in ids_of]
        end = time.perf_counter()
        tokens, passes = sum(each[0] for each in found), sum(each[1] for each in found)
        if number:  # the first warms up
            plain_speeds.append(plain_tokens / (middle - start))
            speeds.append(tokens / (end - middle))
    ratios = [ours / theirs for ours, theirs in zip(speeds, plain_speeds, strict=True) if theirs]
    return BlockRow(
        rule=rule.name,
        threshold=rule.threshold,
        threads=threads,
        tokens=tokens,
        passes=passes,
        tokens_per_second=statistics.median(speeds),
        plain_tokens_per_second=statistics.median(plain_speeds),
        ratio=statistics.median(ratios) if ratios else 0.0,
        ratio_min=min(ratios, default=0.0),
        ratio_max=max(ratios, default=0.0),
    )


def _in_blocks(
    session: BlockSession, ids: Sequence[int], rule: BlockRule, max_tokens: int
) -> tuple[int, int]:
    """The numbers of tokens and of passes."""
    session.clear()
    decoding = BlockDecoding(
        session,
        ids,
        session.diffusion,
        rule=rule,
        ends=session.end_tokens(),
        max_tokens=max_tokens,
        n_ctx=session.n_ctx,
    )
    return sum(1 for _ in decoding), decoding.passes


def _token_by_token(session: Session, ids: Sequence[int], max_tokens: int) -> int:
    """The number of tokens."""
    ends = session.end_tokens()
    session.clear()
    following = list(ids)
    for count in range(max_tokens):
        following = [int(session.feed(following).argmax())]
        if following[0] in ends:
            return count
    return max_tokens
