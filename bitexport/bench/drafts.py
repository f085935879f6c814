"""``bitexport bench --draft``: decoding with drafts beside plain decoding, in alternation, on text."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitexport.bench.texts import NOT_REPEATING, REPEATING
from bitexport.errors import UsageError
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.runtime import ggml
from bitexport.runtime.drafts import DEFAULT_DRAFT_TOKENS, DraftSource, check_drafts, open_drafts
from bitexport.runtime.generation import Generation
from bitexport.runtime.limits import check_threads, checked_context
from bitexport.runtime.loading import load
from bitexport.runtime.sampling import Sampling
from bitexport.runtime.threads import default_threads
from bitexport.system.machine import cpu_model

_GREEDY = Sampling(temperature=0)


@dataclass(frozen=True, slots=True)
class DraftRow:
    """One text at one thread count.

    Attributes:
        text: what was continued: ``"repeating"``, ``"not repeating"``, or a file's name.
        threads: the number of threads.
        tokens: that were generated; fewer than asked for where the model ended the text.
        tokens_per_pass: with drafts; 1 is plain decoding.
        accepted: the share of drafted tokens that the text has; None if none was drafted.
        plain, drafted: tokens per second after the prompt, medians of the rounds.
        ratio, ratio_min, ratio_max: how many times as fast with drafts: median and range over the rounds.
        rounds: number of rounds.
        exact: see :class:`bitexport.runtime.drafts.DraftStatistics`.
        same: whether both gave the same tokens.
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
    same: bool


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
    """Continue texts with and without drafts, the most likely token each time, in alternating rounds.

    Args:
        gguf: the file.
        draft, draft_tokens: see :class:`bitexport.runtime.completion.Completion`.
        text: a file whose text is continued; None for a built-in one that repeats itself and one that does
            not.
        generated_tokens: the most tokens to generate.
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
    context = checked_context(gguf, 0)
    rows = []
    for done, count in enumerate(counts):
        model: Any = load(gguf, n_ctx=context, n_threads=count, n_threads_batch=count, swa_full=True)
        source = open_drafts(model, draft, threads=count)
        assert source is not None
        try:
            for name, prompt in texts.items():
                progress(ProgressEvent(done, len(counts), "thread counts", f"{name}, {count} threads"))
                ids = model.tokenize(prompt.encode("utf-8"), special=True)
                if len(ids) >= context:
                    raise UsageError(f"{name} has {len(ids)} tokens, and the context {context}; shorten it")
                most = min(generated_tokens, context - len(ids))
                rows.append(compare_decoding(model, source, ids, name, count, most, rounds, draft_tokens))
        finally:
            source.close()
            model.close()
    return DraftReport(os.fspath(gguf), os.fspath(draft), ggml.cpu_tier(), cpu_model(), rows)


def compare_decoding(
    model: Any,
    source: DraftSource,
    prompt: Sequence[int],
    name: str,
    threads: int,
    tokens: int,
    rounds: int,
    draft_tokens: int = DEFAULT_DRAFT_TOKENS,
) -> DraftRow:
    """Time one text with and without drafts; ``source`` learns in the first round, which is not counted."""
    speeds: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        plain = _generated(model, prompt, tokens, None, draft_tokens)
        drafted = _generated(model, prompt, tokens, source, draft_tokens)
        speeds.append((_speed(plain), _speed(drafted)))
    speeds = speeds[1:]
    ratios = [fast / slow for slow, fast in speeds]
    found = drafted.drafts
    return DraftRow(
        text=name,
        threads=threads,
        tokens=len(drafted.ids),
        tokens_per_pass=len(drafted.ids) / max(found.passes, 1),
        accepted=found.accepted / found.drafted if found.drafted else None,
        plain=statistics.median(slow for slow, _ in speeds),
        drafted=statistics.median(fast for _, fast in speeds),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        rounds=rounds,
        exact=found.exact,
        same=drafted.ids == plain.ids,
    )


def _generated(
    model: Any, prompt: Sequence[int], tokens: int, source: DraftSource | None, draft_tokens: int
) -> Generation:
    generation = Generation(
        model, prompt, sampling=_GREEDY, max_tokens=tokens, drafts=source, draft_tokens=draft_tokens
    )
    for _ in generation:
        pass
    return generation


def _speed(generation: Generation) -> float:
    """Tokens per second after the first, which comes with the prompt."""
    seconds = generation.seconds - generation.prompt_seconds
    return max(len(generation.ids) - 1, 1) / max(seconds, 1e-9)
