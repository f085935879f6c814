"""Streams as files of tokens."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitexport.text.sources import Document
from bitexport.train.data import tokens
from bitexport.train.data.bpe import train_tokenizer


def test_a_stream_that_breaks_off_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_sources(_specs: Any) -> Iterator[Document]:
        yield from (Document(f"text {chr(97 + i)}") for i in range(20))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tokens, "read_sources", read_sources)
    tokenizer = train_tokenizer(["text " * 9], 258, 64)
    with pytest.raises(OSError, match="No space left"):
        tokens.stream_tokens(["hub:a/b"], 10, 10_000, tokenizer, tmp_path)
    assert not [*tmp_path.iterdir()]
