"""What tasks found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of a task or a group.

    Attributes:
        task: its name.
        metric: the figure's name; with ``, FILTER`` if the answers were filtered.
        value: the figure, in the metric's own unit.
        error: its standard error; None if the metric has none.
        shots: examples before each question; None for a group of tasks that differ.
        samples: number of questions; None for a group.
    """

    task: str
    metric: str
    value: float
    error: float | None
    shots: int | None
    samples: int | None


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What :func:`~bitexport.evaluation.tasks.driver.evaluate_tasks` found.

    Attributes:
        file: the GGUF file.
        results: lm-evaluation-harness' own results: ``results``, ``groups``, ``n-shot``, ``n-samples``,
            ``versions``, ``higher_is_better``.
        settings: what the evaluation was asked for.
        harness: version of lm-evaluation-harness.
        requests: number of questions to the model.
        seconds: time to answer them all, without loading tasks.
    """

    file: str
    results: dict[str, Any]
    settings: dict[str, Any]
    harness: str
    requests: int
    seconds: float

    def scores(self) -> Iterator[Score]:
        """All figures, groups after tasks."""
        groups = self.results.get("groups") or {}
        tasks = {task: found for task, found in self.results["results"].items() if task not in groups}
        for name, found in [*tasks.items(), *groups.items()]:
            for key, value in found.items():
                metric, _, kind = key.partition(",")
                if not kind or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                    continue
                error = found.get(f"{metric}_stderr,{kind}")
                counts = self.results.get("n-samples", {}).get(name, {})
                yield Score(
                    task=name,
                    metric=metric if kind == "none" else f"{metric}, {kind}",
                    value=float(value),
                    error=float(error) if isinstance(error, (int, float)) else None,
                    shots=self.results.get("n-shot", {}).get(name),
                    samples=counts.get("effective"),
                )

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return {
            "file": self.file,
            "harness": f"lm-eval {self.harness}",
            "settings": self.settings,
            **self.results,
            "requests": self.requests,
            "seconds": self.seconds,
        }
