"""Finding many strings at once, compared with reading them one by one."""

from __future__ import annotations

import random
import struct
import time

import numpy as np
import pytest

from bitexport.gguf import strings
from bitexport.gguf.strings import Texts, string_starts


def array(texts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(text)) + text for text in texts)


def one_by_one(texts: list[bytes], start: int) -> list[int]:
    found = [start]
    for text in texts:
        found.append(found[-1] + 8 + len(text))
    return found


def random_texts(chance: random.Random, count: int) -> list[bytes]:
    """Short and long ones, empty ones, and some that look like the length of another."""
    kinds = (
        lambda: chance.randbytes(chance.randrange(12)),
        lambda: b"",
        lambda: bytes(chance.randrange(30)),
        lambda: struct.pack("<Q", chance.randrange(300)) * 2,
        lambda: chance.randbytes(chance.choice((255, 256, 257, 3000))),
    )
    weights = chance.choice(((1, 0, 0, 0, 0), (50, 1, 1, 1, 1), (1, 1, 1, 1, 1), (0, 1, 0, 0, 0)))
    return [chance.choices(kinds, weights)[0]() for _ in range(count)]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("window", [64, 1 << 20])
def test_any_texts(seed: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strings, "_WINDOW", window)
    monkeypatch.setattr(strings, "_FEW", 2)
    monkeypatch.setattr(strings, "_STEPS", 5)
    chance = random.Random(seed)
    texts = random_texts(chance, chance.choice((0, 1, 5, 500)))
    before, after = chance.randbytes(chance.randrange(20)), chance.randbytes(chance.randrange(20))
    data = np.frombuffer(before + array(texts) + after, np.uint8)
    assert string_starts(data, len(before), len(texts)).tolist() == one_by_one(texts, len(before))


@pytest.mark.parametrize("cut", [1, 2, 7, 8, 9, 15])
@pytest.mark.parametrize("few", [0, 1_000])
def test_the_last_one_goes_beyond_the_end(cut: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strings, "_FEW", few)
    texts = [b"abc"] * 5
    data = np.frombuffer(array(texts)[:-cut], np.uint8)
    whole = [at for at in one_by_one(texts, 0) if at <= len(data)]
    assert string_starts(data, 0, 5).tolist() == whole


def test_a_length_of_all_bits() -> None:
    data = np.frombuffer(array([b"ab"]) + b"\xff" * 40, np.uint8)
    assert string_starts(data, 0, 3).tolist() == [0, 10]


def test_texts_that_are_hard_to_find_take_no_longer() -> None:
    """Every other one is long, so that there are no short ones in a row."""
    texts = [b"a", b"b" * 256] * 50_000
    data = np.frombuffer(array(texts), np.uint8)
    start = time.process_time()
    assert string_starts(data, 0, len(texts))[-1] == len(data)
    assert time.process_time() - start < 2


def texts_of(texts: list[bytes]) -> Texts:
    raw = array(texts)
    return Texts(raw, string_starts(np.frombuffer(raw, np.uint8), 0, len(texts)))


@pytest.mark.parametrize("seed", range(20))
def test_texts_are_a_sequence_that_knows_its_duplicates_and_zeros(seed: int) -> None:
    chance = random.Random(seed)
    expected = random_texts(chance, 200)
    if seed % 2:
        expected = [text for text in dict.fromkeys(expected) if b"\0" not in text]
    found = texts_of(expected)
    assert list(found) == expected
    assert found[1:5] == expected[1:5]
    assert found[-1] == expected[-1]
    assert found.lengths.tolist() == [len(text) for text in expected]
    assert found.surely_differ() == (len(set(expected)) == len(expected))
    assert found.has_zeros() == any(b"\0" in text for text in expected)


def test_a_vocabulary_that_is_too_large_to_compare_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strings, "_HASHED_BYTES", 20)
    assert texts_of([b"a", b"b"]).surely_differ()
    assert not texts_of([b"a", b"b", b"c"]).surely_differ()
