"""What ``bitexport bench`` measures, and which of its options go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitexport.cli import options
from bitexport.errors import UsageError

#: The default of ``--rules``.
RULES = "greedy,confidence,adaptive"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeOptions:
    """Options of ``bench`` that do not go with all others, as they were given."""

    compare: str
    against: Sequence[str]
    draft: str | None
    draft_text: Path | None
    decode: str
    rules: str
    prompts: Path | None
    keep: Path | None
    plot: Path | None
    load: int
    workers: str
    layers: str
    batches: Sequence[int]
    generated: Sequence[int]

    @property
    def mode(self) -> str:
        """What is measured: ``compare``, ``draft``, ``block``, or else ``plain``."""
        if self.compare or self.against:
            return "compare"
        if self.draft is not None:
            return "draft"
        return "block" if self.decode else "plain"

    def check(self) -> None:
        """Raise UsageError for the first combination that means nothing."""
        self._check_one_mode()
        _CHECKS[self.mode](self)
        if self.draft_text is not None and self.draft is None:
            raise UsageError("--draft-text is the text for --draft; add --draft lookup, or leave it out")
        for name, given in (("--prompts", self.prompts is not None), ("--rules", self.rules != RULES)):
            if given and not self.decode:
                raise UsageError(f"{name} is for --decode block; add it, or leave out {name}")
        if self.keep is not None and not self.compare:
            raise UsageError("--keep is for the twins of --compare; add --compare, or leave out --keep")

    def _check_one_mode(self) -> None:
        if self.decode not in ("", "block"):
            raise UsageError(f"--decode is {self.decode!r}; expected block")
        given = {
            "--draft": self.draft is not None,
            "--decode": bool(self.decode),
            "--compare": bool(self.compare),
            "--against": bool(self.against) and not self.compare,  # both are one comparison
        }
        modes = [name for name, is_given in given.items() if is_given]
        if len(modes) > 1:
            raise UsageError(f"{modes[0]} and {modes[1]} do not go together; leave one of them out")

    def _check_compare(self) -> None:
        option = "--compare" if self.compare else "--against"
        if list(self.batches) != [1]:
            raise UsageError(f"--batch and {option} do not go together; leave one of them out")
        if self.workers:
            raise UsageError(f"{option} measures on this machine alone; leave out --workers or {option}")
        if self.plot is not None:
            raise UsageError(f"--plot draws limits, but {option} has none; leave one of them out")

    def _check_draft(self) -> None:
        if self._has_extras() or len(self.generated) != 1:
            raise UsageError(
                "--draft measures one length of text at a time and goes with --draft-tokens, --draft-text, "
                "--gen-tokens, --threads and --repetitions only; leave out the others"
            )
        options.read_text(self.draft_text, "--draft-text")  # a clear message if it cannot be read

    def _check_block(self) -> None:
        if self._has_extras() or len(self.generated) != 1:
            raise UsageError(
                "--decode block is alone: it measures one length of text at a time and goes with --rules, "
                "--prompts, --gen-tokens, --threads and --repetitions only; leave out the others"
            )

    def _check_plain(self) -> None:
        if self.plot is not None and self.workers:
            raise UsageError("--plot draws this machine's limits; leave out --workers or --plot")
        if self.plot is not None:
            from bitexport.system.picture import check_picture

            check_picture(self.plot)  # fail now rather than after minutes of measuring

    def _has_extras(self) -> bool:
        """Whether an option is given that needs the measurements of prefill and decode."""
        is_given = (self.keep is not None, self.plot is not None, self.load, self.workers, self.layers)
        return any(is_given) or list(self.batches) != [1]


_CHECKS = {
    "compare": ModeOptions._check_compare,
    "draft": ModeOptions._check_draft,
    "block": ModeOptions._check_block,
    "plain": ModeOptions._check_plain,
}
