"""The texts that the model has to predict, and how well token frequencies alone would predict them.

There is prose and code, so that a model of one is not judged by the other: the kind that the model predicts
best counts. A text from the user replaces both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bitexport.errors import UsageError
from bitexport.metrics.likelihood import WINDOW, windows
from bitexport.text.prompts import built_in_prompts

#: Indices of the built-in prompts to use, by kind.
BUILT_IN: Mapping[str, Sequence[int]] = {"code": (0, 1, 5), "prose": (13, 15, 16)}

#: The text whose next token is shown if the user gives no prompt; empty: the beginning of the user's text.
PROMPTS: Mapping[str, str] = {
    "code": "def add(a, b):\n    return",
    "prose": "The sun rises in the",
    "text": "",
}

#: The prompt is at most this many characters of the user's text, cut at a space.
PROMPT_CHARS = 60

#: The number of tokens used of each document: enough for a judgement, and quick.
MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One kind of text, tokenized.

    Attributes:
        kind: ``code``, ``prose``, or ``text`` for the user's.
        prompt, prompt_ids: the text whose next token is shown.
        windows: token ids, each window run from an empty context.
        baseline: nats per token of the best model without context, see :func:`unigram_entropy`.
    """

    kind: str
    prompt: str
    prompt_ids: list[int]
    windows: list[Sequence[int]]
    baseline: float

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return sum(len(window) - 1 for window in self.windows)


def make_samples(
    tokenize: Callable[[str], list[int]], vocab: int, n_ctx: int, text: str | None, prompt: str | None
) -> list[Sample]:
    """The user's text, or prose and code, with the user's prompt or one of ours.

    Raises:
        UsageError: the text has fewer than two tokens, or the prompt none.
    """
    if text is not None:
        kinds = {"text": [text]}
    else:
        built_in = built_in_prompts()
        kinds = {kind: [built_in[index] for index in chosen] for kind, chosen in BUILT_IN.items()}
    samples = []
    for kind, documents in kinds.items():
        shown = prompt if prompt is not None else PROMPTS[kind] or _beginning(documents[0])
        prompt_ids = tokenize(shown)[: n_ctx - 1]
        if not prompt_ids:
            what = "text" if prompt is None else "prompt"
            raise UsageError(f"the {what} has no tokens; give one that is not empty")
        cut = [
            window
            for document in documents
            for window in windows(tokenize(document)[:MAX_TOKENS], min(WINDOW, n_ctx))
        ]
        ids = [token for window in cut for token in window]
        samples.append(Sample(kind, shown, prompt_ids, cut, unigram_entropy(ids, vocab)))
    return samples


def _beginning(text: str) -> str:
    head = text[:PROMPT_CHARS]
    return head.rpartition(" ")[0] or head


def unigram_entropy(ids: Sequence[int], vocab: int) -> float:
    """Entropy in nats of the distribution that the tokens ``ids`` were drawn from, at most ``ln(vocab)``.

    The frequencies in a short text underestimate it, because most tokens of the language do not occur. This
    is the estimator of Chao and Shen (2003): frequencies are shrunk by the coverage 1 - f1 / n, where f1 of
    the n tokens occur once, and each term is divided by the probability of having been seen at all.
    """
    counts = Counter(ids)
    n = len(ids)
    once = sum(count == 1 for count in counts.values())
    coverage = 1 - min(once, n - 1) / n
    entropy = 0.0
    for count in counts.values():
        p = coverage * count / n
        entropy -= p * math.log(p) / (1 - (1 - p) ** n)
    return min(entropy, math.log(vocab))
