"""Progress of requests: to a caller's callback, or to a bar as lm-evaluation-harness draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bitexport.progress import Progress, ProgressEvent, ignore


class Steps:
    """A :data:`~bitexport.progress.Progress` that labels what it passes on.

    Args:
        report: gets the events.
        total: of all parts together.
        label: what is being done.
        begin: requests that were answered before.
    """

    def __init__(self, report: Progress, total: int, label: str, begin: int = 0) -> None:
        self._report = report
        self._total = total
        self._label = label
        self._begin = begin

    def __call__(self, event: ProgressEvent) -> None:
        self._report(ProgressEvent(self._begin + event.done, self._total, event.unit, self._label))

    def after(self, done: int) -> Steps:
        """The same for a part that begins after ``done`` requests."""
        return Steps(self._report, self._total, self._label, done)


@contextmanager
def bar(progress: Progress | None, total: int, label: str, hidden: bool) -> Iterator[Steps]:
    """Report to ``progress``, or to a bar on stderr if that is None; ``hidden`` reports to nobody then."""
    if progress is not None or hidden:
        yield Steps(progress or ignore, total, label)
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=f"Running {label} requests") as shown:

        def update(event: ProgressEvent) -> None:
            shown.update(event.done - shown.n)

        yield Steps(update, total, label)
