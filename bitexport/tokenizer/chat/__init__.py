"""Chat templates: small programs in jinja2 that come with a model, checked and rendered within limits.

jinja2's sandbox keeps a template from Python's internals, but not from memory and time: it computes constant
expressions while it compiles, and nothing limits its operators, filters and loops. So a template is compiled
here without computing anything (:mod:`.check`), and rendered in a process of its own (:mod:`.renderer`).
"""

from bitexport.tokenizer.chat.check import (
    DEFAULT_KEY,
    NAMED_PREFIX,
    TemplateError,
    check_template,
    template_of_key,
)
from bitexport.tokenizer.chat.renderer import render_template

__all__ = [
    "DEFAULT_KEY",
    "NAMED_PREFIX",
    "TemplateError",
    "check_template",
    "render_template",
    "template_of_key",
]
