"""The cache of tokens: the same split as in memory, made once, whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitexport.errors import UsageError
from bitexport.text import Document, Record, Template, encode_record, read_source, side_of, split
from bitexport.train.data import cache as cache_module
from bitexport.train.data import encoding
from bitexport.train.data.bpe import train_tokenizer
from bitexport.train.data.cache import TokenCache, open_cache
from bitexport.train.data.examples import CachedExamples, RunOfTokens
from bitexport.train.data.mixture import Mixture, parse_mixture
from bitexport.train.data.tokens import tokens_of
from tests.train.conftest import WORDS, write_pairs

TAGS = Template("tags", "en", "fr")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [*WORDS, *WORDS.values(), "number numéro"]
    return train_tokenizer(texts, 260, 64, ["<|en|>", "<|fr|>"])


def build(folder: Path, sources: list[str], tokenizer: Any, **changes: Any) -> TokenCache:
    template = changes.pop("template", TAGS)
    return open_cache(parse_mixture(sources), template, 15, tokenizer, folder, **changes)


def with_duplicates(folder: Path) -> str:
    """Pairs, some twice, and some that share one side with another."""
    source = write_pairs(folder)
    for name in ("a.en", "a.fr"):
        lines = (folder / name).read_text().splitlines()
        lines += lines[:20] + (lines[30:90] if name == "a.en" else lines[31:91])
        (folder / name).write_text("\n".join(lines) + "\n")
    return source


@pytest.mark.parametrize("workers", [1, 2])
def test_the_split_is_that_of_memory(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(encoding, "_RECORDS_AT_ONCE", 7)
    monkeypatch.setattr(encoding, "_CHUNKS_ALONE", 3)
    source = with_duplicates(tmp_path / "pairs")
    found = build(tmp_path / "cache", [source], tokenizer, workers=workers)
    expected = split(read_source(source), 15)
    assert (found.duplicates, found.too_close) == (expected.duplicates, expected.too_close)
    assert found.duplicates == 20
    assert found.too_close > 0
    for records, numbers in ((expected.train, found.train), (expected.held_out, found.held_out)):
        examples = CachedExamples(found, numbers)
        assert len(records) == len(examples.lengths)
        for index, record in enumerate(records):
            encoded = encode_record(record, tokenizer, TAGS, 10_000)
            assert encoded is not None
            ids, labels = examples.get(0, index)
            assert (ids.tolist(), labels.tolist()) == (encoded.input_ids, encoded.labels)
            assert examples.targets[index] == (labels[1:] != -100).sum()
    pairs = [(f"<|en|>{pair.source}<|fr|>", pair.target, pair.source) for pair in expected.held_out]  # type: ignore[union-attr]
    assert found.held_out_pairs() == pairs


def test_labels_are_split_as_in_memory(tmp_path: Path, tokenizer: Any) -> None:
    source = write_pairs(tmp_path / "pairs")
    (tmp_path / "pairs" / "a.fr").write_text("rouge\npetit\n" * 120)
    with pytest.raises(UsageError, match=r"0 held out.*set answers_are_labels"):
        build(tmp_path / "cache", [source], tokenizer)
    found = build(tmp_path / "cache", [source], tokenizer, labels=True)
    expected = split(read_source(source), 15, labels=True)
    pairs = [(f"<|en|>{pair.source}<|fr|>", pair.target, pair.source) for pair in expected.held_out]  # type: ignore[union-attr]
    assert found.held_out_pairs() == pairs
    assert len(found.train) == len(expected.train)
    assert {pair[1] for pair in pairs} == {"rouge", "petit"}


def test_packed_documents_are_one_run(tmp_path: Path, tokenizer: Any) -> None:
    source = with_duplicates(tmp_path / "pairs")
    found = build(tmp_path / "cache", [source], tokenizer, template=Template("plain"))
    expected = tokens_of(split(read_source(source), 15).train, Template("plain"), tokenizer)
    run = RunOfTokens(found, found.train, [tokenizer.eos_token_id])
    assert len(run) == len(expected)
    for begin, end in ((0, len(run)), (0, 1), (1, 2), (0, 40), (37, 301), (len(run) - 5, len(run) + 9)):
        assert run[begin:end].tolist() == expected[begin:end].tolist()


def test_a_second_start_reads_nothing(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pairs(tmp_path / "pairs")
    first = build(tmp_path / "cache", [source], tokenizer)
    monkeypatch.setattr(cache_module, "read_source", lambda _: pytest.fail("read again"))
    second = build(tmp_path / "cache", [source], tokenizer)
    assert second.folder == first.folder
    assert np.array_equal(second.tokens, first.tokens)


def test_whatever_decides_the_tokens_decides_the_folder(tmp_path: Path, tokenizer: Any) -> None:
    source = write_pairs(tmp_path / "pairs")

    def key(**changes: Any) -> str:
        arguments: dict[str, Any] = {
            "template": TAGS,
            "held_out_percent": 15,
            "tokenizer": tokenizer,
            "limit": 0,
        }
        sources = changes.pop("sources", (source,))
        return cache_module.cache_key(Mixture(sources, None), **(arguments | changes))

    other = train_tokenizer([*WORDS], 260, 64, ["<|en|>", "<|fr|>"])
    with_template = train_tokenizer([*WORDS, *WORDS.values(), "number numéro"], 260, 64, ["<|en|>", "<|fr|>"])
    with_template.chat_template = "{{ messages }}"
    keys = [
        key(),
        key(template=Template("tags", "fr", "en")),
        key(held_out_percent=16),
        key(limit=100),
        key(labels=True),
        key(tokenizer=other),
        key(tokenizer=with_template),
        key(sources=(source, "stdlib")),
    ]
    assert key() == keys[0]
    time.sleep(0.01)
    (tmp_path / "pairs" / "a.en").touch()
    keys.append(key())
    assert len({*keys}) == len(keys)


def slow_records(_spec: str) -> Iterator[Record]:
    for number in range(100_000):
        yield Document(f"red {number}")
        time.sleep(0.001)


def build_slowly(folder: Path, tokenizer: Any) -> None:
    cache_module.read_source = slow_records  # type: ignore[assignment]
    encoding._RECORDS_AT_ONCE = 5
    encoding._CHUNKS_ALONE = 2
    build(folder, ["text:x"], tokenizer, template=Template("plain"), workers=2)


def children(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_build_leaves_nothing_that_is_read(tmp_path: Path, tokenizer: Any) -> None:
    """kill -9, also of the processes that it started; the next build removes what was left."""
    process = multiprocessing.get_context("fork").Process(target=build_slowly, args=(tmp_path, tokenizer))
    process.start()
    assert process.pid is not None
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob("*.part/tokens.bin")) or not children(
        process.pid
    ):
        assert time.monotonic() < end
        time.sleep(0.01)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while any(Path(f"/proc/{pid}/cmdline").exists() and state(pid) != "Z" for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.01)
    left = [path.name for path in tmp_path.iterdir()]
    assert any(name.endswith(".part") for name in left)
    (tmp_path / "a.txt").write_text("red house " * 50)
    for number in range(30):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.txt").write_text(
            f"red house {chr(97 + number % 26)} {'old ' * number}"
        )
    found = build(tmp_path, [f"text:{tmp_path / 'texts'}"], tokenizer, template=Template("plain"))
    assert len(found.train) + len(found.held_out) == 30


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def build_and_count(folder: Path, source: str, tokenizer: Any, queue: Any) -> None:
    builds = []
    original = cache_module._build
    cache_module._build = lambda *args: (builds.append(1), time.sleep(0.3), original(*args))  # type: ignore[assignment]
    found = build(folder, [source], tokenizer)
    queue.put((len(builds), int(found.tokens.sum())))


def test_of_two_processes_one_builds(tmp_path: Path, tokenizer: Any) -> None:
    source = write_pairs(tmp_path / "pairs")
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    arguments = (tmp_path / "cache", source, tokenizer, queue)
    processes = [context.Process(target=build_and_count, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(count for count, _ in results) == [0, 1]
    assert results[0][1] == results[1][1]


def test_a_failure_leaves_nothing(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_spec: str) -> Iterator[Record]:
        yield from (Document(f"text {chr(97 + number)}") for number in range(20))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "read_source", broken)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path, ["text:x"], tokenizer, template=Template("plain"))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_worker_that_is_killed_ends_the_build(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_RECORDS_AT_ONCE", 2)
    monkeypatch.setattr(encoding, "_CHUNKS_ALONE", 1)
    monkeypatch.setattr(encoding.Encoder, "encode", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    chunks = ((0, [Document("red")]) for _ in range(50))
    encoder = encoding.Encoder(tokenizer, Template("plain"), 15)
    with pytest.raises(UsageError, match="a process that tokenizes was ended"):
        list(encoding._encode_in_processes(iter(chunks), encoder, 2))


def test_a_stream_is_read_up_to_its_limit(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources with weights are read in parts of the limit; sides are those of a stream."""
    read: dict[str, int] = {"text:a": 0, "text:b": 0}

    def endless(spec: str) -> Iterator[Record]:
        for number in range(1_000_000):
            read[spec] += 1
            letters = "".join(chr(97 + number // 26**i % 26) for i in range(4))
            yield Document(f"{spec[-1]} {letters} red house")

    monkeypatch.setattr(cache_module, "read_source", endless)
    found = build(
        tmp_path, ["text:a @ 3", "text:b @ 1"], tokenizer, template=Template("plain"), limit=4000, workers=1
    )
    tokens = [
        int(found.lengths[found.train][found.sources[found.train] == number].sum()) for number in (0, 1)
    ]
    assert 3000 <= tokens[0] < 3040
    assert 1000 <= tokens[1] < 1040
    assert max(read.values()) < 3000
    text = tokenizer.decode(
        found.tokens[found.offsets[found.train[5]] : found.offsets[found.train[5] + 1] - 1]
    )
    assert side_of(Document(text), 15) == "train"
