"""Finds lm-evaluation-harness' tasks by name and loads their data, with one line for what goes wrong."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from bitexport.errors import BitexportError, UsageError
from bitexport.progress import Progress, ProgressEvent


class TaskDataError(BitexportError):
    """A task's data set, or the task itself, cannot be loaded."""


def load_tasks(names: Sequence[str], folder: str | Path | None, progress: Progress) -> Any:
    """The tasks of some names, as ``TaskManager.load`` returns them.

    Args:
        names: names of tasks, groups or tags, patterns such as ``mmlu_*``, or paths of YAML files.
        folder: a folder with tasks, searched first; it can contain Python code, which is executed.
        progress: called while data is loaded.

    Raises:
        UsageError: there is no such task or folder.
        TaskDataError: a data set cannot be loaded, for example without a network.
    """
    if not names or not all(names):
        raise UsageError("no task is named; give names separated by commas, for example arc_easy,hellaswag")
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder; give one with the YAML files of tasks")
    progress(ProgressEvent(0, 0, "tasks", "finding"))
    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder is not None else None
    # the harness has 14,000 tasks, which take seconds to read
    if manager is None or not all(_matches(manager, name) for name in names):
        manager = TaskManager(include_path=None if folder is None else str(folder))
    specs = [spec for name in names for spec in _known(manager, name)]
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for done, spec in enumerate(specs):
        progress(ProgressEvent(done, len(specs), "tasks", f"loading {spec}"))
        found = _load(manager, spec)
        for task in found["tasks"]:
            if task in loaded["tasks"]:
                raise UsageError(f"task {task} is named twice, perhaps as a part of a group; name it once")
        for part, content in loaded.items():
            content.update(found.get(part, {}))
    return loaded


def _matches(manager: Any, name: str) -> list[str]:
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return [name]
    return list(manager.match_tasks([name]))


def _known(manager: Any, name: str) -> list[str]:
    if found := _matches(manager, name):
        return found
    near = difflib.get_close_matches(name, manager.all_tasks, 3, cutoff=0.7)
    raise UsageError(
        f"there is no task {name}; "
        + (f"did you mean {', '.join(near)}? " if near else "lm_eval ls tasks lists those that exist; ")
        + "tasks of your own need --tasks-path"
    )


def _load(manager: Any, spec: str) -> Any:
    try:
        return manager.load([spec])
    except ModuleNotFoundError:
        raise
    except Exception as error:  # of the hub, of the data set's format, or of the task's own code
        task = _task_in(error.__traceback__)
        name = task.config.task if task is not None else spec
        reason = " ".join(str(error).split()) or type(error).__name__
        data = getattr(task.config, "dataset_path", None) if task is not None else None
        if isinstance(error, ConnectionError) and data:
            raise TaskDataError(
                f"task {name}: its data set {data} is not on this machine and cannot be downloaded "
                f"({reason}); run once with a network, or set HF_HOME to a cache that has it; "
                "tasks on files of your own need none: see --tasks-path"
            ) from error
        what = f"its data set {data}" if data else "it"
        raise TaskDataError(
            f"task {name}: {what} cannot be loaded: {type(error).__name__}: {reason}; check the task's YAML "
            "file and its data"
        ) from error


def _task_in(trace: TracebackType | None) -> ConfigurableTask | None:
    """The task that was being loaded when an exception was raised: a group does not say which."""
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, ConfigurableTask) and getattr(owner, "_config", None) is not None:
            return owner
        trace = trace.tb_next
    return None
