"""What the model has to predict, and how well a model that knows nothing but token frequencies would.

The texts are prose and code, so that a model of either is not judged by the other: what counts is the kind
that the model predicts best. A text of the user's replaces both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bitexport.errors import UsageError
from bitexport.metrics.likelihood import WINDOW, windows
from bitexport.text.prompts import built_in_prompts

#: which of the built-in prompts are read, by their kind.
BUILT_IN: Mapping[str, Sequence[int]] = {"code": (0, 1, 5), "prose": (13, 15, 16)}

#: what the next token is asked for after, where the user gives no prompt.
PROMPTS: Mapping[str, str] = {
    "code": "def add(a, b):\n    return",
    "prose": "The sun rises in the",
    "text": "",
}

#: characters of the user's text that become its prompt, up to the last space among them.
PROMPT_CHARS = 60

#: tokens of the user's text that are read: enough to judge by, and soon done.
MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """One kind of text, tokenized.

    Attributes:
        kind: ``code``, ``prose``, or ``text`` for the user's.
        prompt: what the next token is asked for after, and its ids.
        windows: token ids, each run from an empty context.
        baseline: nats a token of the best model without context, see :func:`unigram_entropy`.
    """

    kind: str
    prompt: str
    prompt_ids: list[int]
    windows: list[Sequence[int]]
    baseline: float

    @property
    def tokens(self) -> int:
        """How many are predicted."""
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
        words = prompt if prompt is not None else PROMPTS[kind] or _beginning(documents[0])
        prompt_ids = tokenize(words)[: n_ctx - 1]
        if not prompt_ids:
            what = "text" if prompt is None else "prompt"
            raise UsageError(f"the {what} has no tokens; give one that is not empty")
        pieces = [
            window
            for document in documents
            for window in windows(tokenize(document)[:MAX_TOKENS], min(WINDOW, n_ctx))
        ]
        ids = [token for piece in pieces for token in piece]
        samples.append(Sample(kind, words, prompt_ids, pieces, unigram_entropy(ids, vocab)))
    return samples


def _beginning(text: str) -> str:
    head = text[:PROMPT_CHARS]
    return head.rpartition(" ")[0] or head


def unigram_entropy(ids: Sequence[int], vocab: int) -> float:
    """Entropy in nats of the source of single tokens that ``ids`` were drawn from, at most ``ln(vocab)``.

    The frequencies in a short text give too little, for most tokens of the language are not in it. This is
    the estimator of Chao and Shen (2003): frequencies are shrunk by the coverage 1 - f1 / n, where f1 tokens
    occur once among n, and each is weighted by the chance of having been seen at all.
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
