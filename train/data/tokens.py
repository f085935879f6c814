"""Documents as one run of token ids, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from bitexport.text.sources import Record
from bitexport.text.templates import Template, render

Tokens = npt.NDArray[np.integer]
_DOCUMENTS_AT_ONCE = 256


def tokens_of(records: Iterable[Record], template: Template, tokenizer: Any) -> Tokens:
    """All records in one run, int64 ``[tokens]``: the end token before the first and after each."""
    documents = _documents(records, template, tokenizer)
    return np.fromiter(chain([tokenizer.eos_token_id], chain.from_iterable(documents)), dtype=np.int64)


def _documents(records: Iterable[Record], template: Template, tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each record followed by the end token; many records are tokenized at once."""
    texts = ("".join(render(record, template, tokenizer)) for record in records)
    while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]
