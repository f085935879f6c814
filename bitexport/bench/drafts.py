"""``bitexport bench --draft``: decoding with drafts beside plain decoding, in alternation, on a given text.

The text's own tokens are chosen, so that the same ones are decoded by every model, with and without drafts.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitexport.bench.measure import in_progress
from bitexport.bench.texts import NOT_REPEATING, REPEATING
from bitexport.errors import UsageError
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.runtime import ggml
from bitexport.runtime.drafts import (
    DEFAULT_DRAFT_TOKENS,
    DraftSource,
    DraftStatistics,
    Passes,
)
from bitexport.runtime.drafts.opening import check_drafts, open_drafts
from bitexport.runtime.library import bind
from bitexport.runtime.limits import SHORT_CONTEXT, check_threads, checked_context
from bitexport.runtime.loading import load
from bitexport.runtime.sampling import Sampler, Sampling
from bitexport.runtime.threads import default_threads
from bitexport.system.machine import cpu_model


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One text at one thread count.

    Attributes:
        text: its name: ``"repeating"``, ``"not repeating"``, or a file's name.
        threads: the number of threads.
        tokens: that were decoded: the last ones of the text.
        tokens_per_pass: with drafts; 1 is plain decoding.
        accepted: the share of drafted tokens that the text has; None if none was drafted.
        plain, drafted: tokens per second after the prompt, medians of the rounds.
        ratio, ratio_min, ratio_max: how many times as fast with drafts: median and range over the rounds.
        rounds: number of rounds.
        exact: see :class:`bitexport.runtime.drafts.DraftStatistics`.
    """

    text: str
    threads: int
    tokens: int
    tokens_per_pass: float
    accepted: float | None
    plain: float
    drafted: float
    ratio: float
    ratio_min: float
    ratio_max: float
    rounds: int
    exact: bool | None


@dataclass(frozen=True, slots=True)
class DraftReport:
    """What :func:`bench_drafts` measured.

    Attributes:
        path: the file.
        draft: ``"lookup"``, or the draft model's file.
        tier: the ternary kernels that ran.
        cpu: the CPU's name.
        rows: in the order of measurement.
    """

    path: str
    draft: str
    tier: str
    cpu: str
    rows: list[DraftRow]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return {"drafts": True, **asdict(self)}


def bench_drafts(
    gguf: str | os.PathLike[str],
    draft: str | os.PathLike[str],
    *,
    draft_tokens: int = DEFAULT_DRAFT_TOKENS,
    text: str | os.PathLike[str] | None = None,
    generated_tokens: int = 128,
    threads: Sequence[int] = (),
    rounds: int = 5,
    progress: Progress = ignore,
) -> DraftReport:
    """Decode the second half of texts with and without drafts, in alternating rounds.

    Args:
        gguf: the file.
        draft, draft_tokens: see :class:`bitexport.runtime.completion.Completion`.
        text: a file with text; None for a built-in one that repeats itself and one that does not.
        generated_tokens: the most tokens to decode: at most half of a text.
        threads: thread counts; one per core if empty.
        rounds: timed rounds, after one that is not counted.
        progress: called for every round.

    Raises:
        UsageError: a number is out of range, a text does not fit, or the draft model has other tokens.
        GGUFError, NativeLibraryError: a file cannot be loaded.
    """
    if min(generated_tokens, rounds, *threads) < 1:
        raise UsageError("threads, generated tokens and rounds must be 1 or more")
    counts = list(threads) or [default_threads()]
    for count in counts:
        check_threads(count)
    check_drafts(gguf, draft, draft_tokens)
    texts = {"repeating": REPEATING, "not repeating": NOT_REPEATING}
    if text is not None:
        texts = {Path(text).name: Path(text).read_text(encoding="utf-8")}
    context = checked_context(gguf, SHORT_CONTEXT)
    rows = []
    for done, count in enumerate(counts):
        model: Any = load(gguf, n_ctx=context, n_threads=count, n_threads_batch=count, swa_full=True)
        source = open_drafts(model, draft, threads=count)
        assert source is not None
        try:
            for name, prompt in texts.items():
                progress(ProgressEvent(done, len(counts), "thread counts", in_progress(name, count)))
                ids = model.tokenize(prompt.encode("utf-8"), special=True)
                if not 8 <= len(ids) <= context:
                    raise UsageError(
                        f"{name} has {len(ids)} tokens; expected 8 to {context} (the context): give "
                        "another text"
                    )
                most = min(generated_tokens, len(ids) // 2)
                rows.append(compare_decoding(model, source, ids, name, count, most, rounds, draft_tokens))
        finally:
            source.close()
            model.close()
    return DraftReport(os.fspath(gguf), os.fspath(draft), ggml.cpu_tier(), cpu_model(), rows)


def compare_decoding(
    model: Any,
    source: DraftSource,
    ids: Sequence[int],
    name: str,
    threads: int,
    tokens: int,
    rounds: int,
    draft_tokens: int = DEFAULT_DRAFT_TOKENS,
) -> DraftRow:
    """Time the last tokens of a text with and without drafts.

    ``source`` learns in the first round, which is not counted.
    """
    speeds: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        plain, _ = _speed(model, ids, tokens, None, draft_tokens)
        drafted, found = _speed(model, ids, tokens, source, draft_tokens)
        speeds.append((plain, drafted))
    speeds = speeds[1:]
    ratios = [fast / slow for slow, fast in speeds]
    return DraftRow(
        text=name,
        threads=threads,
        tokens=tokens,
        tokens_per_pass=tokens / (found.passes - 1),
        accepted=found.accepted / found.drafted if found.drafted else None,
        plain=statistics.median(slow for slow, _ in speeds),
        drafted=statistics.median(fast for _, fast in speeds),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        rounds=rounds,
        exact=found.exact,
    )


def _speed(
    model: Any, ids: Sequence[int], tokens: int, source: DraftSource | None, draft_tokens: int
) -> tuple[float, DraftStatistics]:
    """Tokens per second for the last tokens of a text, each of which is chosen whatever the model thinks."""
    begin = len(ids) - tokens
    vocab = bind().llama_cpp.llama_model_get_vocab(model.model)
    sampler = Sampler(vocab, Sampling(temperature=0), ids[:begin])
    passes = Passes(model, source, draft_tokens)
    model.reset()
    passes.begin(ids[: begin - 1], ids[: begin - 1])
    passes.evaluate(sampler, 0)
    passes.take(ids[begin - 1])
    at, more = begin, False
    start = time.perf_counter()
    while at < len(ids):
        if not more:
            passes.evaluate(sampler, len(ids) - at - 1)
        sampler.choose(model.ctx, passes.place)  # takes its time, as in a text of the model's own
        more = passes.take(ids[at])
        at += 1
    seconds = time.perf_counter() - start
    sampler.close()
    return tokens / seconds, passes.statistics
