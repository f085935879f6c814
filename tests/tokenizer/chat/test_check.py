"""Templates are compiled without computing anything, or refused."""

from __future__ import annotations

import time

import pytest

from bitexport.tokenizer.chat import TemplateError, check_template
from tests.support.template_bombs import BROKEN, MEMORY, TIME


@pytest.mark.parametrize("template", [*MEMORY.values(), *TIME.values()])
def test_nothing_is_computed(template: str) -> None:
    started = time.perf_counter()
    check_template(template)
    assert time.perf_counter() - started < 2  # jinja2 alone takes minutes, or all memory


@pytest.mark.parametrize(
    ("message", "template"), [(message, each) for message, several in BROKEN.items() for each in several]
)
def test_templates_that_cannot_be_used(message: str, template: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateError, match=message):
        check_template(template)
    assert time.perf_counter() - started < 5
    with pytest.raises(TemplateError, match=message):  # also the second time
        check_template(template)


def test_the_result_does_not_depend_on_the_callers_depth() -> None:
    template = "{{ " + "[" * 40 + "a" + "]" * 40 + " }}"

    def deep(level: int) -> None:
        if level:
            deep(level - 1)
        else:
            check_template(template)

    deep(800)


def test_not_a_text() -> None:
    with pytest.raises(TemplateError, match="is of type dict; expected text"):
        check_template({})
