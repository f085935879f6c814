"""``bitexport eval --tasks``: lm-evaluation-harness' tasks on a GGUF file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.evaluator import evaluate

from bitexport.errors import BitexportError, UsageError
from bitexport.evaluation.tasks.loading import load_tasks
from bitexport.evaluation.tasks.model import BitexportLM
from bitexport.evaluation.tasks.quiet import FEWSHOT_SEED, quiet, seeded
from bitexport.evaluation.tasks.report import TaskReport
from bitexport.progress import Progress, ignore

#: Resamples for the standard errors of figures that are not means.
_RESAMPLES = 1000

_KEPT = ("results", "groups", "n-shot", "n-samples", "versions", "higher_is_better")


def evaluate_tasks(
    file: str | Path,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    tasks_path: str | Path | None = None,
    apply_chat_template: bool = False,
    n_ctx: int = 0,
    threads: int = 0,
    progress: Progress = ignore,
) -> TaskReport:
    """Measure a GGUF file on tasks of lm-evaluation-harness.

    The figures are those of the harness' ``hf`` backend on the checkpoint, up to the order in which floats
    are added.

    Args:
        file: the GGUF file.
        tasks: names of tasks, groups or tags, patterns such as ``mmlu_*``, or paths of YAML files.
        num_fewshot: examples before each question; None for what each task says. A task that says 0 keeps it.
        limit: use only the first questions of each task.
        tasks_path: a folder with further tasks; Python code in it is executed.
        apply_chat_template: ask in the form of a conversation, with the file's chat template; examples become
            earlier messages.
        n_ctx: longest text in tokens; 0 for the context that the model was trained with.
        threads: 0 for one per core.
        progress: called as tasks are loaded and requests answered.

    Raises:
        UsageError: a task or folder does not exist, a number is out of range, or a task does not fit.
        TaskDataError: a data set cannot be loaded.
        GGUFError, NativeLibraryError: the file cannot be run.
    """
    if num_fewshot is not None and num_fewshot < 0:
        raise UsageError(f"{num_fewshot} examples before each question; expected 0 or more")
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} questions; expected 1 or more")
    with (
        closing(
            BitexportLM(str(file), max_length=n_ctx or None, threads=threads, progress=progress)
        ) as model,
        seeded(),
        quiet(progress),
    ):
        if apply_chat_template:
            model.chat_template(True)  # raises if there is none, before minutes of work
        loaded = load_tasks(tasks, tasks_path, progress)
        for task in loaded["tasks"].values():
            _set_examples(task, num_fewshot)
        begin = time.perf_counter()
        found = _evaluate(model, loaded, limit, apply_chat_template)
        seconds = time.perf_counter() - begin
        requests = sum(len(task.instances) for task in loaded["tasks"].values())
    return TaskReport(
        file=str(file),
        results={key: found[key] for key in _KEPT if key in found},
        settings={
            "tasks": list(tasks),
            "num_fewshot": num_fewshot,
            "limit": limit,
            "apply_chat_template": apply_chat_template,
            "max_length": model.max_length,
            "threads": model.session.threads,
        },
        harness=lm_eval.__version__,
        requests=requests,
        seconds=seconds,
    )


def _set_examples(task: Any, given: int | None) -> None:
    """The number of examples, as the harness' own command decides it."""
    own = task.get_config("num_fewshot")
    if given is not None and own != 0:
        task.set_config(key="num_fewshot", value=given)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _evaluate(model: BitexportLM, loaded: Any, limit: int | None, chat: bool) -> dict[str, Any]:
    try:
        found: dict[str, Any] = evaluate(
            lm=model,
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=_RESAMPLES,
            log_samples=False,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    except (BitexportError, ModuleNotFoundError, OSError, MemoryError):
        raise
    except ValueError as error:
        if "larger than population" in str(error):  # Python's random.sample
            raise UsageError(
                "a task has fewer examples than it is to show before each question; "
                "give a smaller --num-fewshot"
            ) from error
        # the harness refuses a task: unsafe code, images, too few examples
        raise UsageError(f"the tasks cannot be evaluated: {' '.join(str(error).split())}") from error
    return found
