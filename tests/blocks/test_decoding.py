"""The loop and its rules against a second implementation, on a model whose logits are a table.

Every number is exact, so that the two must agree on each token whatever the rule, the prompt and the limits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from bitexport.blocks import BlockDecoding, BlockRule, TokenChoice
from bitexport.checkpoint.block_diffusion import BlockDiffusion
from bitexport.errors import UsageError

VOCABULARY, MASK, END, BLOCK = 12, 11, 10, 4
Logits = npt.NDArray[np.float32]


def table(before: Sequence[int], ids: Sequence[int], position: int) -> Logits:
    """Logits of a position of a block, which depend on everything that it attends to."""
    digest = hashlib.sha256(repr((list(before), list(ids), position)).encode()).digest()
    random = np.random.default_rng(list(digest))
    logits = random.normal(0, 2, VOCABULARY).astype(np.float32)
    logits[MASK] = 50  # never to be chosen, whatever the model says
    return logits


class Table:
    """Has a cache, like a real model."""

    def __init__(self) -> None:
        self.cache: list[int] = []

    def evaluate(self, ids: Sequence[int], rows: Sequence[int], *, keep: bool) -> Logits:
        found = np.stack([table(self.cache, ids, row) for row in rows])
        if keep:
            self.cache += ids
        return found


def slowly(
    prompt: list[int], rule: str, threshold: float, most: int, context: int, shift: bool = True
) -> tuple[list[int], str, int]:
    """The text, why it ended, and the number of passes: from the description, without a cache."""
    text: list[int | None] = list(prompt)
    passes = 0
    limit = min(len(prompt) + most, context)

    def distribution(logits: Logits) -> list[float]:
        powers = [0.0 if t == MASK else float(np.exp(np.float64(x))) for t, x in enumerate(logits)]
        return [power / sum(powers) for power in powers]

    def result() -> tuple[list[int], str] | None:
        written: list[int] = []
        for token in text[len(prompt) :]:
            if token is None:
                return None
            if token == END:
                return written, "stop"
            written.append(token)
            if len(prompt) + len(written) == limit:
                return written, "length"
        return None

    while True:
        begin = len(text) // BLOCK * BLOCK
        before = [token for token in text[:begin] if token is not None]
        block: list[int | None] = [*text[begin:], *[None] * BLOCK][: min(BLOCK, context - begin)]
        if block[0] is None and shift:
            last = table(before[:-BLOCK], before[-BLOCK:], BLOCK - 1)
            block[0] = int(np.argmax(distribution(last)))
        step = 0
        while True:
            text = [*before, *block]
            found = result()
            if found is not None:
                return *found, passes
            unknown = [i for i, token in enumerate(block) if token is None]
            if not unknown:
                break
            shown = [MASK if token is None else token for token in block]
            passes += 1
            options = {i: distribution(table(before, shown, i - 1 if shift else i)) for i in unknown}
            likely = {i: int(np.argmax(options[i])) for i in unknown}
            best = max(
                (i for i in unknown if likely[i] != END or i == unknown[0]),
                key=lambda i: (max(options[i]), -i),
            )
            chosen = [best]
            for i in unknown:
                needed = threshold
                if rule == "adaptive":
                    known_left = i == 0 or block[i - 1] is not None
                    needed *= max(0.5, (0.85 if known_left else 1.0) - 0.05 * step)
                if rule != "greedy" and threshold < 1 and max(options[i]) > needed and i != best:
                    chosen.append(i)
            for i in sorted(chosen):
                if likely[i] != END:
                    block[i] = likely[i]
                elif all(token is not None for token in block[:i]):
                    block[i] = END
                    break
            step += 1
        passes += 1  # the block stays


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize(
    ("rule", "threshold"),
    [("greedy", 0.9), ("confidence", 1.0), ("confidence", 0.6), ("adaptive", 0.7), ("confidence", 0.0)],
)
def test_every_text_is_that_of_the_slow_twin(rule: str, threshold: float, shift: bool) -> None:
    endings = set()
    for number in range(30):
        random = np.random.default_rng(number)
        prompt = random.integers(0, 10, 1 + number % 9).tolist()
        most = int(random.integers(1, 20))
        context = len(prompt) + 3 if number % 5 == 0 else 40
        decoding = BlockDecoding(
            Table(),
            prompt,
            BlockDiffusion(BLOCK, MASK, shift),
            rule=BlockRule(rule, threshold),
            ends=[END],
            max_tokens=most,
            n_ctx=context,
        )
        text = list(decoding)
        assert text == decoding.ids
        expected = slowly(prompt, rule, threshold, most, context, shift)
        assert (text, decoding.finish_reason, decoding.passes) == expected, number
        assert decoding.prompt_passes == len(prompt) // BLOCK
        endings.add(decoding.finish_reason)
    assert endings == {"stop", "length"}


def test_greedy_settles_one_token_a_pass() -> None:
    decoding = BlockDecoding(
        Table(),
        [1, 2, 3, 4],
        BlockDiffusion(BLOCK, MASK),
        rule=BlockRule("greedy"),
        max_tokens=12,
        n_ctx=64,
    )
    assert len(list(decoding)) == 12
    # a block: its first token comes with the block before, three passes for the others, one to keep it
    assert decoding.passes == 3 * 3 + 2


@pytest.mark.parametrize(("length", "most", "context"), [(8, 5, 8), (9, 5, 8), (6, 5, 6), (6, 0, 64)])
def test_a_prompt_without_room_gets_no_text(length: int, most: int, context: int) -> None:
    settings = BlockDiffusion(BLOCK, MASK)
    decoding = BlockDecoding(Table(), [1] * length, settings, max_tokens=most, n_ctx=context)
    assert not list(decoding)
    assert (decoding.finish_reason, decoding.passes) == ("length", 0)


def test_a_shorter_limit_gives_the_beginning_of_the_same_text() -> None:
    def text(most: int) -> list[int]:
        settings = BlockDiffusion(BLOCK, MASK)
        return list(
            BlockDecoding(
                Table(), [5], settings, rule=BlockRule("confidence", 0.5), max_tokens=most, n_ctx=64
            )
        )

    longest = text(20)
    assert [text(most) for most in range(1, 20)] == [longest[:most] for most in range(1, 20)]


def test_sampling_follows_the_distribution_and_the_seed() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))
    choose = TokenChoice(temperature=1.0, seed=3)
    counts = np.bincount([choose(logits) for _ in range(4000)], minlength=4) / 4000
    assert counts == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)
    half = TokenChoice(temperature=0.5, seed=3)
    squares = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    counts = np.bincount([half(logits) for _ in range(4000)], minlength=4) / 4000
    assert counts == pytest.approx(squares / squares.sum(), abs=0.03)
    nucleus = TokenChoice(temperature=1.0, top_p=0.7, seed=3)
    assert {nucleus(logits) for _ in range(300)} == {0, 1}
    assert {TokenChoice(temperature=1.0, top_k=3, seed=s)(logits) for s in range(100)} == {0, 1, 2}
    assert {TokenChoice(temperature=1.0, min_p=0.4, seed=s)(logits) for s in range(100)} == {0, 1}
    first, second = TokenChoice(temperature=1.0, seed=9), TokenChoice(temperature=1.0, seed=9)
    assert [first(logits) for _ in range(50)] == [second(logits) for _ in range(50)]
    assert TokenChoice()(logits) == 0


@pytest.mark.parametrize(("rule", "threshold"), [("Greedy", 0.9), ("confidence", 1.1), ("confidence", -0.1)])
def test_rules_out_of_range_are_refused(rule: str, threshold: float) -> None:
    with pytest.raises(UsageError, match=r"expected"):
        BlockRule(rule, threshold)


def test_ends_drawn_too_early_do_not_stop_a_pass() -> None:
    """At a high temperature ends are drawn everywhere, also where tokens in front are unknown."""
    endings = set()
    for seed in range(60):
        decoding = BlockDecoding(
            Table(),
            [1, 2, 3],
            BlockDiffusion(BLOCK, MASK),
            rule=BlockRule("confidence", 0.3),
            choose=TokenChoice(temperature=50.0, seed=seed),
            ends=[END, 0, 1, 2, 3, 4, 5, 6],
            max_tokens=12,
            n_ctx=64,
        )
        assert not {END, MASK, 0, 1} & set(decoding)
        endings.add(decoding.finish_reason)
    assert "stop" in endings
