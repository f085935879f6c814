"""Conversations with a model: its chat template, what was said, and what has been evaluated."""

from __future__ import annotations

from bitexport.chat.conversation import Answer, Conversation
from bitexport.chat.template import ChatTemplate, Message

__all__ = ["Answer", "ChatTemplate", "Conversation", "Message"]
