"""Chat templates: how a model's file wants a conversation to be written."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from bitexport.errors import GGUFError, UsageError
from bitexport.tokenizer.chat import TemplateError, check_template, render_template

Role = Literal["system", "user", "assistant"]

# texts that no template contains
_ANSWER = "\x00answer\x00"
_NEXT = "\x00next\x00"


@dataclass(frozen=True, slots=True)
class Message:
    """What one side said."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template in jinja2, as in ``tokenizer.chat_template`` of a GGUF file.

    Attributes:
        source: the template.
        bos_token, eos_token: the texts of these tokens, which templates use.
        path: the file that it comes from, for messages.
    """

    source: str
    bos_token: str = ""
    eos_token: str = ""
    path: str = "FILE.gguf"

    def check(self) -> None:
        """Compile the template, without computing anything.

        Raises:
            GGUFError: it cannot be used.
        """
        try:
            check_template(self.source)
        except TemplateError as error:
            raise self._unusable(error) from error

    def render(self, messages: Sequence[Message], *, answer_next: bool = True) -> str:
        """The text of a conversation.

        Args:
            messages: what was said so far.
            answer_next: end with the beginning of the model's next answer.

        Raises:
            GGUFError: the template cannot be used, or needs more memory or time than it may.
            UsageError: the template refuses these messages, or leaves out the system message.
        """
        variables = {
            "messages": [asdict(message) for message in messages],
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "add_generation_prompt": answer_next,
        }
        try:
            text = render_template(self.source, variables)
        except TemplateError as error:
            raise self._unusable(error) from error
        except Exception as error:  # a template is a program and raises anything
            raise UsageError(
                f"the chat template does not take this conversation: {error}; leave out --system if there is "
                "one, or use --no-template"
            ) from error
        for message in messages:
            if message.role == "system" and message.content.strip() not in text:
                raise UsageError(
                    "the chat template leaves out the system message; leave out --system, and write it into "
                    "your first message instead"
                )
        return text

    def after_answer(self) -> str:
        """The text between an answer and the next message; empty if the template cannot show it."""
        messages = [Message("user", "a"), Message("assistant", _ANSWER), Message("user", _NEXT)]
        try:
            text = self.render(messages, answer_next=False)
        except UsageError:
            return ""  # it wants other messages; the file's own end tokens still end an answer
        _, found, rest = text.partition(_ANSWER)
        return rest.partition(_NEXT)[0] if found else ""

    def _unusable(self, problem: TemplateError) -> GGUFError:
        return GGUFError(
            f"{self.path}: its chat template {problem}; chat without it: bitexport chat "
            f"{shlex.quote(self.path)} --no-template, or correct tokenizer_config.json or "
            "chat_template.jinja and convert the checkpoint again"
        )


@dataclass(frozen=True, slots=True)
class NoTemplate:
    """Everything that was said as one running text, for models without a chat template."""

    def render(self, messages: Sequence[Message], *, answer_next: bool = True) -> str:  # noqa: ARG002
        """All contents, one after the other."""
        return "".join(message.content for message in messages)

    def after_answer(self) -> str:
        """Nothing: only the file's own end tokens end an answer."""
        return ""
