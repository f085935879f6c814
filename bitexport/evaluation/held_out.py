"""Pairs drawn from training's own sources: the side that training held out, rendered as it was rendered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bitexport import text
from bitexport.errors import UsageError
from bitexport.evaluation.items import PromptAnswer
from bitexport.text.templates import NEEDS_CHAT_TEMPLATE


def held_out_pairs(
    specs: Sequence[str],
    template: text.Template,
    held_out_percent: int,
    folders: Sequence[str | Path | None] = (),
) -> list[PromptAnswer]:
    """What training with these sources, this template and this percentage judged itself by, in its order.

    Those longer than training's sequence_length are among them; the run's held_out.jsonl has them not.

    Args:
        specs: sources, see :mod:`bitexport.text.sources`.
        folders: of these models, the first that is a checkpoint folder lends its chat template, where the
            template asks for one.

    Raises:
        UsageError: a template without prompts or its chat template, bad sources, or an empty side.
        TokenizerError: the folder's tokenizer cannot be loaded.
    """
    if template.name == "plain":
        raise UsageError("--template plain makes no prompt; expected tags, chat or hy-mt1.5; or use --text")
    if not 0 < held_out_percent < 100:
        raise UsageError(f"--held-out-percent is {held_out_percent}; expected 1 to 99, as training had it")
    tokenizer: Any = None
    if template.name in NEEDS_CHAT_TEMPLATE:
        folder = next((Path(each) for each in folders if each is not None and Path(each).is_dir()), None)
        if folder is None:
            expected = "a checkpoint folder among the models, whose tokenizer has the chat template"
            raise UsageError(
                f"--template {template.name}: none of the models is a folder; expected {expected}"
            )
        from bitexport.reference.model import load_tokenizer

        tokenizer = load_tokenizer(folder)
    held_out = text.split(text.read_sources(specs), held_out_percent).held_out
    return render_pairs(held_out, template, tokenizer)


def render_pairs(
    held_out: Iterable[text.Record], template: text.Template, tokenizer: Any
) -> list[PromptAnswer]:
    """Each record as prompt and answer."""
    return [
        PromptAnswer(*text.render(record, template, tokenizer), getattr(record, "source", None))
        for record in held_out
    ]
