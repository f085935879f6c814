"""Text to tokens as lm-evaluation-harness' ``hf`` backend does it, on a GGUF file's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from bitexport.gguf.reader import read_gguf
from bitexport.runtime.session import Session

_KEY = "tokenizer.ggml.{}"


class Encoder:
    """The tokenizer of an open file.

    Args:
        session: the open file.
        add_bos: whether texts begin with the begin-of-text token; None for what the file says.
        prefix: the token before a text without context; None for the begin-of-text token, or the end-of-text
            token of a file without one.

    Attributes:
        bos, eos: ids of the begin-of-text and the end-of-text token; None if the file has none.
        prefix: the token before a text without context; None if there is none.
        prefix_is_assumed: whether nothing says that the checkpoint's tokenizer has this token: the file has
            one, does not add it to a text, and has another one at the end.
    """

    def __init__(self, session: Session, *, add_bos: bool | None = None, prefix: int | None = None) -> None:
        self._session = session
        self._add_bos = add_bos
        metadata = read_gguf(session.path).metadata
        self.bos = _token(metadata.get(_KEY.format("bos_token_id")))
        self.eos = session.end_of_text
        added = add_bos or metadata.get(_KEY.format("add_bos_token")) is True
        self.prefix_is_assumed = prefix is None and not added and self.bos not in (None, self.eos)
        self.prefix = prefix if prefix is not None else self.eos if self.bos is None else self.bos
        self._prefix_text = "" if self.prefix is None else self.text([self.prefix], special=True)

    def ids(self, text: str, special: bool | None = None) -> list[int]:
        """Token ids of a text; special tokens that are written in it become those tokens.

        Args:
            text: the text.
            special: add begin-of-text and end-of-text tokens; None as the tokenizer does, unless the text
                begins with one.
        """
        if special is None:
            if self._prefix_text and text.startswith(self._prefix_text):
                special = False
            elif self._add_bos is not None:
                bos = [self.bos] if self._add_bos and self.bos is not None else []
                return bos + self._session.tokenize(text, add_special=False)
            else:
                special = True
        return self._session.tokenize(text, add_special=special)

    def text(self, ids: Sequence[int], *, special: bool) -> str:
        """The text of some tokens, with or without special ones."""
        return self._session.detokenize(ids, special=special)


def _token(found: object) -> int | None:
    return found if isinstance(found, int) and found >= 0 else None
