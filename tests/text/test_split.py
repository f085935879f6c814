"""The split does not leak: no normalized key of the held-out side is on the training side."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitexport.errors import UsageError
from bitexport.text import stdlib as corpus
from bitexport.text.sources import Chat, Document, Pair, Record, read_source, texts_of
from bitexport.text.split import key_of, keys_of, side_of, split

# Few words with much decoration, so that records often share a key without being equal.
decorated = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "_", "&", " ", "«"]),
    st.sampled_from(
        ["open", "Open", "op_en", "save", "Fichier", "fichier %d", "fichier {0}", "fichier 12", "", "日本"]
    ),
    st.sampled_from(["", " it", "\tit", "\u00a0IT"]),
    st.sampled_from(["", ".", "…", ":", "\u00a0»"]),
)
records = st.lists(
    st.one_of(
        st.builds(Pair, decorated, decorated),
        st.builds(Document, decorated),
        st.builds(lambda a, b: Chat((("system", "x"), ("user", a), ("assistant", b))), decorated, decorated),
    ),
    max_size=60,
)


def shared_keys(train: list[Record], held_out: list[Record]) -> set[str]:
    sides = [{key for record in side for key in keys_of(record)} for side in (train, held_out)]
    return sides[0] & sides[1]


@settings(max_examples=150, deadline=None)
@given(records, st.integers(1, 99))
def test_no_key_is_on_both_sides(found: list[Record], percent: int) -> None:
    try:
        sides = split(found, percent)
    except UsageError:
        return  # everything fell on one side
    assert not shared_keys(sides.train, sides.held_out)
    kept = sides.train + sides.held_out
    assert len(set(kept)) == len(kept)
    assert set(kept) <= set(found)
    assert len(kept) + sides.duplicates + sides.too_close == len(found)
    assert split(found[::-1], percent) == sides  # independent of the order of reading


@settings(max_examples=150, deadline=None)
@given(records, st.integers(1, 99))
def test_no_key_of_a_stream_is_on_both_sides(found: list[Record], percent: int) -> None:
    sides: dict[str | None, list[Record]] = {"train": [], "held_out": [], None: []}
    for record in found:
        sides[side_of(record, percent)].append(record)
    assert not shared_keys(sides["train"], sides["held_out"])
    assert not any(isinstance(record, Document) for record in sides[None])


def many_pairs(count: int = 4000) -> list[Record]:
    return [Pair(f"message {word(i)}", f"texte {word(7919 + i)}") for i in range(count)]


def word(number: int) -> str:
    """A number in letters: digits would all become the same key."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def test_about_the_percentage_is_held_out_and_any_beginning_is_a_fair_sample() -> None:
    sides = split(many_pairs(), 5)
    assert 140 < len(sides.held_out) < 260  # 200 expected, three standard deviations are 41
    starts = [record.source[:9] for record in sides.train[:1000] if isinstance(record, Pair)]
    assert len(set(starts)) == 9  # every first digit, not the first thousand in order
    assert (sides.duplicates, sides.too_close) == (0, 0)


def test_the_side_depends_only_on_the_record() -> None:
    every = many_pairs()
    full, half = split(every, 5), split(every[::2], 5)
    assert set(half.held_out) == set(full.held_out) & set(every[::2])


def test_duplicates_and_near_duplicates_are_counted() -> None:
    every = many_pairs(400)
    sides = split(every + every[:30], 10)
    assert sides.duplicates == 30
    train, held_out = sides.train[0], sides.held_out[0]
    assert isinstance(train, Pair)
    assert isinstance(held_out, Pair)
    same_target = Pair(
        held_out.source + "!", f"  {train.target.upper()}..."
    )  # its prompt is held out, its answer is in training
    again = split([*every, same_target], 10)
    assert again.too_close == 1
    assert same_target not in again.train + again.held_out


def test_the_standard_library_is_split_as_in_held_out_text() -> None:
    expected = corpus.held_out_text(held_out_percent=5)
    sides = split(read_source("stdlib"), 5)
    texts = [
        {record.text for record in side if isinstance(record, Document)}
        for side in (sides.train, sides.held_out)
    ]
    assert all(text in expected for text in texts[1])
    assert sum(map(len, texts[1])) > 0.99 * len(expected)
    assert not any(text in expected for text in texts[0] if len(text) > 500)
    sample = next(iter(sides.held_out))
    assert isinstance(sample, Document)
    assert corpus.is_held_out(Path(sample.name), 5)
    assert side_of(sample, 5) == "held_out"


def classified(count: int = 400) -> list[Record]:
    """Prompts with one of three answers, which therefore recur on both sides."""
    answers = ("yes", "no", "maybe")
    return [Pair(f"{word(i)} is it", answers[i % 3]) for i in range(count)]


def test_labels_may_be_on_both_sides() -> None:
    every = classified()
    with pytest.raises(UsageError, match=r"0 held out.*because they are labels, set answers_are_labels"):
        split(every, 10)
    sides = split(every, 10, labels=True)
    assert len(sides.train) + len(sides.held_out) == len(every)
    assert {texts_of(record)[1] for record in sides.held_out} == {"yes", "no", "maybe"}
    prompts = [{keys_of(record)[0] for record in side} for side in (sides.train, sides.held_out)]
    assert not prompts[0] & prompts[1]
    for side, name in ((sides.train, "train"), (sides.held_out, "held_out")):
        assert all(side_of(record, 10, labels=True) == name for record in side)


def test_the_advice_about_labels_is_given_only_where_it_helps() -> None:
    with pytest.raises(UsageError) as caught:
        split(many_pairs(), 0)
    assert "labels" not in str(caught.value)


def test_an_empty_side_is_an_error_with_both_counts() -> None:
    with pytest.raises(
        UsageError, match=r"4,000 records for training, 0 held out \(0 percent\); expected some"
    ):
        split(many_pairs(), 0)
    with pytest.raises(UsageError, match="0 records for training, 0 held out"):
        split([], 5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("_Open File…", "open  file..."),
        ("Op&en", "open"),
        ("開く(_O)", "開く"),
        ("%d files", "12 files"),
        ("%1$s of %2$s", "{0} of {name!r}"),
        ("%(count)03d left", "%-5.1lf left"),
        ("%s%%", "%1%"),
        ("« Oui »\u00a0!", "oui"),
        ("l’image", "l'image"),
        ("ＯＫ", "ok"),
        ("Straße", "STRASSE"),
        ("1,234.5 MB", "7 MB"),
        ("\tA\u202fb\n", "a b"),
    ],
)
def test_keys_that_must_agree(one: str, other: str) -> None:
    assert key_of(one) == key_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Open", "Close"),
        ("file", "file %s"),
        ("日本", "日"),
        ("कि", "का"),
        ("a b", "ab"),
        ("1 file", "1 files"),
    ],
)
def test_keys_that_must_differ(one: str, other: str) -> None:
    assert key_of(one) != key_of(other)


def test_keys_of_a_chat_exclude_system_messages() -> None:
    messages = (("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D"))
    assert keys_of(Chat(messages)) == keys_of(Chat((("system", "Be kind."), *messages))) == ("a b c", "d")
