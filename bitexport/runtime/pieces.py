"""The bytes of one token."""

from __future__ import annotations

import ctypes
from typing import Any

from bitexport.runtime.library import api


def piece(vocab: Any, token: int, special: bool = True) -> bytes:
    """The bytes of one token of a ``llama_vocab``; they may be only part of a character.

    Args:
        vocab: the ``llama_vocab`` pointer.
        token: its id.
        special: return the text of special tokens; otherwise they are empty.
    """
    calls = api()
    room = 64
    while True:
        buffer = ctypes.create_string_buffer(room)
        count = calls.llama_token_to_piece(vocab, token, buffer, room, 0, special)
        if count >= 0:
            return buffer.raw[:count]
        room = -count
