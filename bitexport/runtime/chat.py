"""The chat templates of an open model: rendered within limits, where llama-cpp-python has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitexport.errors import GGUFError
from bitexport.tokenizer.chat import (
    DEFAULT_KEY,
    TemplateError,
    check_template,
    render_template,
    template_of_key,
)

if TYPE_CHECKING:
    from llama_cpp import Llama

#: llama-cpp-python's name for the format of a file's default template.
DEFAULT_FORMAT = "chat_template.default"

_ADVICE = (
    "give bitexport.load a chat_format such as 'chatml', or correct tokenizer_config.json or "
    "chat_template.jinja and convert the checkpoint again"
)


def chat_formats(metadata: Mapping[str, str]) -> dict[str, str]:
    """The chat templates in a file's metadata, by llama-cpp-python's names for their formats."""
    found = {
        key.removeprefix("tokenizer."): template
        for key, template in metadata.items()
        if template_of_key(key) and key != DEFAULT_KEY
    }
    if DEFAULT_KEY in metadata:
        found[DEFAULT_FORMAT] = metadata[DEFAULT_KEY]
    return found


class ChatFormatter:
    """Makes a prompt of messages, as ``llama_cpp.llama_chat_format.Jinja2ChatFormatter`` does.

    Args:
        model: the model whose template it is.
        template: the template.

    Attributes:
        problem: why the template cannot be used, a clause; empty if it can.
    """

    def __init__(self, model: Llama, template: str) -> None:
        self._path = model.model_path
        self._template = template
        self._eos = model.token_eos()
        bos = model.token_bos()
        self._eos_token = model._model.token_get_text(self._eos) if self._eos != -1 else ""
        self._bos_token = model._model.token_get_text(bos) if bos != -1 else ""
        self.problem = ""
        try:
            check_template(template)
        except TemplateError as error:
            self.problem = str(error)

    def __call__(self, *, messages: Any, **others: Any) -> Any:
        """The prompt, and where to stop, as a ``ChatFormatterResponse``.

        Raises:
            GGUFError: the template cannot be used, or needs more memory or time than it may.
            ValueError: the template does not take these messages, and says so.
        """
        from llama_cpp.llama import StoppingCriteriaList
        from llama_cpp.llama_chat_format import ChatFormatterResponse

        variables = dict(
            messages=messages,
            eos_token=self._eos_token,
            bos_token=self._bos_token,
            add_generation_prompt=True,
            **others,
        )
        try:
            prompt = render_template(self._template, variables)
        except TemplateError as error:
            raise GGUFError(f"{self._path}: its chat template {error}; {_ADVICE}") from error

        def at_end(tokens: Any, _logits: Any) -> bool:
            return bool(tokens[-1] == self._eos)

        return ChatFormatterResponse(
            prompt=prompt,
            stop=[self._eos_token],
            stopping_criteria=StoppingCriteriaList([at_end]),
            added_special=True,
        )


def use_templates(model: Llama, metadata: Mapping[str, str], *, choose: bool) -> list[str]:
    """Give a model handlers for the chat templates in its file.

    Args:
        model: the model, opened without templates.
        metadata: the file's metadata, with the templates.
        choose: whether the model's own format is to be used, as the caller has chosen none.

    Returns:
        A warning if the template in use cannot be used; text can be continued all the same.
    """
    from llama_cpp import llama_chat_format

    problems = {}
    for name, template in chat_formats(metadata).items():
        formatter = ChatFormatter(model, template)
        handler = llama_chat_format.chat_formatter_to_chat_completion_handler(formatter)
        model._chat_handlers[name] = handler
        problems[name] = formatter.problem
    if choose and DEFAULT_KEY in metadata:
        # a template that llama-cpp-python knows is a format of its own
        guessed = llama_chat_format.guess_chat_format_from_gguf_metadata(dict(metadata))
        model.chat_format = guessed or DEFAULT_FORMAT
    problem = problems.get(str(model.chat_format))
    if not problem:
        return []
    return [template_warning(model.model_path, problem)]


def template_warning(path: str, problem: str) -> str:
    """The warning about a file's chat template; the problem is a clause."""
    return (
        f"{path}: its chat template {problem}; text can be continued, but create_chat_completion "
        f"is refused: {_ADVICE}"
    )
