"""Refuses a chat template that takes all memory or time.

llama-server renders a file's templates without limits, in its own process: with conversations of its own
while it starts, which then never ends, and with those of the clients. So each template is rendered here
first, within the limits of :mod:`bitexport.tokenizer.chat`. A template that behaves well until it sees a
certain text is not found this way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from bitexport.errors import GGUFError
from bitexport.gguf.reader import GGUFFile
from bitexport.tokenizer.chat import TemplateError, render_template, template_of_key

_logger = logging.getLogger("bitexport.native")

_QUESTION = {"role": "user", "content": "Hello"}
_ANSWER = {"role": "assistant", "content": "Hi"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": {"left": 1}}}
    ],
}
_RESULT = {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": "2"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"left": {"type": "integer"}}, "required": ["left"]},
    },
}

#: What llama-server tries, in kind: a question, a conversation, tools, and a tool's result.
_CONVERSATIONS: tuple[Mapping[str, Any], ...] = (
    {"messages": [_QUESTION]},
    {"messages": [{"role": "system", "content": "Be brief"}, _QUESTION, _ANSWER, _QUESTION]},
    {"messages": [_QUESTION], "tools": [_TOOL]},
    {"messages": [_QUESTION, _CALL, _RESULT], "tools": [_TOOL]},
    {"messages": [_QUESTION, _ANSWER], "add_generation_prompt": False, "enable_thinking": True},
)


def check_chat_templates(file: GGUFFile) -> None:
    """Render the chat templates of a file with a few conversations.

    Raises:
        GGUFError: one is damaged, or needs more memory or time than it may.
    """
    for key, template in file.metadata.items():
        if not template_of_key(key) or not isinstance(template, str):
            continue
        for conversation in _CONVERSATIONS:
            variables = {"bos_token": "", "eos_token": "", "add_generation_prompt": True, **conversation}
            try:
                render_template(template, variables)
            except TemplateError as error:
                raise GGUFError(
                    f"{file.path}: {key} {error}; llama-server would render it without limits: correct "
                    "tokenizer_config.json or chat_template.jinja, and convert the checkpoint again"
                ) from error
            except Exception:  # of any kind: it does not take this conversation
                _logger.debug("%s does not take a conversation", key, exc_info=True)
