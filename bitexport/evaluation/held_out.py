"""Pairs from the sources of a training run: the records that training held out, rendered as in training."""

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
    """The held-out pairs of a training run with these sources, template and percentage, in the run's order.

    Pairs longer than training's sequence_length are included; they are not in the run's held_out.jsonl.

    Args:
        specs: sources, see :mod:`bitexport.text.sources`.
        template: how training rendered a record.
        held_out_percent: as in training.
        folders: the models; if the template needs a chat template, it comes from the first one that is a
            checkpoint folder.

    Raises:
        UsageError: the template has no prompts or no chat template, a source is bad, or a side is empty.
        TokenizerError: the folder's tokenizer cannot be loaded.
    """
    if template.name == "plain":
        raise UsageError("--template plain makes no prompt; expected tags, chat or hy-mt1.5; or use --text")
    if not 0 < held_out_percent < 100:
        raise UsageError(f"--held-out-percent is {held_out_percent}; expected 1 to 99, as in training")
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
