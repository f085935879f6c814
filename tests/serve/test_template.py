"""Chat templates that take all memory or time: llama-server would never start, or fill the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitexport.errors import GGUFError
from bitexport.serve import Server
from tests.serve.conftest import TEMPLATE_KEY
from tests.support.gguf_files import rewritten
from tests.support.template_bombs import BROKEN, MEMORY, TIME

BROKEN_TEMPLATE = BROKEN["is damaged"][1]


@pytest.mark.parametrize(
    ("key", "template", "message"),
    [
        (TEMPLATE_KEY, TIME["loops"], "takes more than 5 s"),
        (TEMPLATE_KEY, MEMORY["doubled"], "needs more than 1024 MiB of memory"),
        (TEMPLATE_KEY, "{% if tools %}" + TIME["loops"] + "{% endif %}", "takes more than 5 s"),
        (f"{TEMPLATE_KEY}.tool_use", MEMORY["text"], "needs more than 1024 MiB of memory"),
        (TEMPLATE_KEY, BROKEN_TEMPLATE, "is damaged"),
    ],
    ids=["loops", "doubled", "with tools", "another one", "damaged"],
)
def test_a_template_without_an_end_is_refused(
    model: Path, tmp_path: Path, key: str, template: str, message: str
) -> None:
    path = rewritten(model, tmp_path / "out.gguf", metadata={key: template})
    with pytest.raises(GGUFError, match=f"out.gguf: {key} {message}.*; llama-server would render"):
        Server(path, port=0, slots=1)


def test_a_template_that_does_not_take_every_conversation_is_served(model: Path, tmp_path: Path) -> None:
    template = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}{{ messages[0]['content'] }}"
    path = rewritten(model, tmp_path / "out.gguf", metadata={TEMPLATE_KEY: template})
    assert Server(path, port=0, slots=1).plan.chats
