"""The chat templates of a file, rendered as transformers renders those of a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from bitexport.errors import BitexportWarning, GGUFError, UsageError
from bitexport.tokenizer.chat import DEFAULT_KEY, NAMED_PREFIX, TemplateError, render_template

# Ends the last message, to find out where its text ends in the conversation. No template contains it, and one
# that strips messages takes the space away.
_END = "\x00end of the message\x00 "


class ChatTemplates:
    """The templates in a file's metadata.

    Args:
        path: the file, for messages.
        metadata: its metadata.
        special: texts of special tokens by the names that templates have for them, ``bos_token`` and so on.
    """

    def __init__(self, path: str, metadata: Mapping[str, Any], special: Mapping[str, str]) -> None:
        self._path = path
        self._special = dict(special)
        self._named = {
            key.removeprefix(NAMED_PREFIX): template
            for key, template in metadata.items()
            if key.startswith(NAMED_PREFIX)
        }
        self._default = metadata.get(DEFAULT_KEY)
        self._chosen: str | None = None

    def choose(self, name: str | None) -> str:
        """The template of that name, or the default one; later renderings use it.

        Raises:
            UsageError: the file has no such template.
        """
        if name is not None and name in self._named:
            found = self._named[name]
        elif name is None or not self._named:
            found = self._default
        else:
            found = None
        if not isinstance(found, str):
            names = ", ".join(sorted(self._named))
            raise UsageError(
                f"{self._path} has no chat template"
                + (f" named {name}; expected one of {names}" if name is not None else "")
                + "; evaluate without --apply-chat-template, or convert a checkpoint that has one"
            )
        self._chosen = found
        return found

    def render(self, messages: Sequence[Mapping[str, str]], *, answer_next: bool) -> str:
        """The text of a conversation.

        A template that does not take a system message gets the conversation without it, with a warning.

        Args:
            messages: ``role`` and ``content`` of each message.
            answer_next: end with the beginning of the model's next answer; otherwise the text ends within the
                last message, which the model is to continue.

        Raises:
            UsageError: there is no template, or it does not take these messages.
            GGUFError: it cannot be used, or needs more memory or time than it may.
        """
        template = self._chosen if self._chosen is not None else self.choose(None)
        try:
            return self._render(template, messages, answer_next)
        except (GGUFError, UsageError):
            raise
        except Exception as error:  # a template is a program and raises anything
            others = [message for message in messages if message["role"] != "system"]
            if len(others) == len(messages):
                raise self._refused(error) from error
            warnings.warn(
                f"{self._path}: its chat template does not take a system message, which is left out, as with "
                "the hf backend",
                BitexportWarning,
                stacklevel=2,
            )
            try:
                return self._render(template, others, answer_next)
            except (GGUFError, UsageError):
                raise
            except Exception as second:
                raise self._refused(second) from second

    def _render(self, template: str, messages: Sequence[Mapping[str, str]], answer_next: bool) -> str:
        written = [dict(message) for message in messages]
        if not answer_next:
            written[-1]["content"] += _END
        variables = {
            "messages": written,
            "tools": None,
            "documents": None,
            "add_generation_prompt": answer_next,
            **self._special,
        }
        try:
            text = render_template(template, variables)
        except TemplateError as error:
            raise GGUFError(
                f"{self._path}: its chat template {error}; evaluate without --apply-chat-template"
            ) from error
        if answer_next:
            return text
        before, found, after = text.rpartition(_END.strip())
        if not found:
            raise UsageError(
                f"{self._path}: its chat template leaves out the beginning of the answer, which the "
                "task gives; evaluate without --apply-chat-template"
            )
        return before if after.startswith(" ") else before.rstrip()

    def _refused(self, error: Exception) -> UsageError:
        return UsageError(
            f"{self._path}: its chat template does not take the task's messages: {error}; evaluate without "
            "--apply-chat-template"
        )
