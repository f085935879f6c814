"""``bitexport eval --tasks``: the function, the command, and what they say of mistakes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitexport.errors import UnsupportedError, UsageError
from bitexport.evaluation.tasks import evaluate_tasks
from bitexport.evaluation.tasks.loading import TaskDataError, _known, load_tasks
from bitexport.progress import ProgressEvent, ignore
from tests.evaluation.tasks.conftest import TASKS
from tests.support.cli import one_line
from tests.support.repository import REPOSITORY

Cli = Callable[..., subprocess.CompletedProcess[str]]

LOCAL = ("--tasks-path", TASKS)


@pytest.fixture(scope="module")
def file(gguf_of: Callable[..., Path]) -> Path:
    return gguf_of("packed-multiply")


@pytest.mark.filterwarnings("ignore:.*lose their beginning")
def test_the_function(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    events: list[ProgressEvent] = []
    random.seed(5)
    state = random.getstate()
    report = evaluate_tasks(
        file, ["local_facts", "local_prose"], num_fewshot=2, limit=3, tasks_path=TASKS, progress=events.append
    )
    scores = {(score.task, score.metric): score for score in report.scores()}
    assert set(scores) == {
        ("local_facts", "acc"),
        ("local_facts", "acc_norm"),
        ("local_prose", "word_perplexity"),
        ("local_prose", "byte_perplexity"),
        ("local_prose", "bits_per_byte"),
    }
    assert scores["local_facts", "acc"].shots == 2
    assert scores["local_facts", "acc"].samples == 3
    assert report.requests == 3 * 4 + 3
    assert {event.label for event in events} >= {"writing prompts", "loglikelihood", "loglikelihood_rolling"}
    # the harness writes to the terminal, and seeds the generators of its caller
    assert capfd.readouterr() == ("", "")
    assert random.getstate() == state


def test_the_command_prints_one_document(run_cli: Cli, file: Path) -> None:
    done = run_cli("eval", file, "--tasks", "local_facts,local_answers", *LOCAL, "--limit", "2", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["results"]["local_facts"]["acc,none"] in (0.0, 0.5, 1.0)
    assert document["n-samples"]["local_answers"] == {"original": 6, "effective": 2}
    assert document["settings"]["limit"] == 2


def test_the_command_prints_a_table(run_cli: Cli, file: Path) -> None:
    done = run_cli("eval", file, "--tasks", "local_facts", *LOCAL, "--limit", "2", "-q")
    assert done.returncode == 0, done.stderr
    assert "local_facts" in done.stdout
    assert "acc_norm" in done.stdout
    assert "only the first 2 questions of each task" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "local_facts", "--text", "a.txt"), "--tasks and --text exclude each other"),
        (("--num-fewshot", "2"), "belong to --tasks"),
        (("--tasks", "local_facts,", *LOCAL), "no task is named"),
        (("--tasks", "local_facts,local", *LOCAL), "task local_facts is named twice"),
        (("--tasks", "local_facts", "--tasks-path", "nowhere"), "nowhere is not a folder"),
        (("--tasks", "local_facts", *LOCAL, "--ctx", "1"), "expected 2 to 4096"),
    ],
)
def test_wrong_usage(run_cli: Cli, file: Path, arguments: tuple[str | Path, ...], message: str) -> None:
    assert message in one_line(run_cli("eval", file, *arguments), 2)


def test_a_folder_is_to_be_converted_first(run_cli: Cli, checkpoint_of: Callable[..., Path]) -> None:
    folder = checkpoint_of("packed-multiply")
    line = one_line(run_cli("eval", folder, "--tasks", "local_facts", *LOCAL), 2)
    assert f"bitexport convert {folder}" in line


def test_near_names_of_an_unknown_task() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    with pytest.raises(UsageError, match="no task local_fact; did you mean local_facts"):
        _known(manager, "local_fact")
    assert sorted(_known(manager, "local_*s")) == ["local_answers", "local_endings", "local_facts"]
    assert _known(manager, str(TASKS / "facts.yaml")) == [str(TASKS / "facts.yaml")]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is not asked again and again."""
    import datasets.config
    import huggingface_hub.constants

    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)


def _task(folder: Path, **entries: Any) -> Path:
    document = {"task": "mine", "output_type": "loglikelihood", "test_split": "test", **entries}
    (folder / "mine.yaml").write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    return folder


@pytest.mark.usefixtures("offline")
def test_a_data_set_that_cannot_be_downloaded(tmp_path: Path) -> None:
    folder = _task(tmp_path, dataset_path="nobody/no-data", doc_to_text="a", doc_to_target="b")
    with pytest.raises(
        TaskDataError, match=r"task mine: its data set nobody/no-data .*set HF_HOME"
    ) as raised:
        load_tasks(["mine"], folder, ignore)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("offline")
def test_a_task_in_a_group_is_named(tmp_path: Path) -> None:
    folder = _task(tmp_path, dataset_path="nobody/no-data", doc_to_text="a", doc_to_target="b")
    (folder / "group.yaml").write_text(json.dumps({"group": "all", "task": ["mine"]}), encoding="utf-8")
    with pytest.raises(TaskDataError, match="task mine: its data set nobody/no-data"):
        load_tasks(["all"], folder, ignore)


def test_data_that_is_missing_on_this_machine(tmp_path: Path) -> None:
    missing = {"data_files": {"test": str(tmp_path / "none.jsonl")}}
    folder = _task(tmp_path, dataset_path="json", dataset_kwargs=missing, doc_to_text="a", doc_to_target="b")
    with pytest.raises(TaskDataError, match=r"task mine: .*none\.jsonl.*check the task's YAML"):
        load_tasks(["mine"], folder, ignore)


def test_a_task_that_runs_code_of_the_model_is_refused(tmp_path: Path, file: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"a": "x", "b": "y"}\n', encoding="utf-8")
    folder = _task(
        tmp_path,
        dataset_path="json",
        dataset_kwargs={"data_files": {"test": str(data)}},
        doc_to_text="{{a}}",
        doc_to_target="{{b}}",
        unsafe_code=True,
    )
    with pytest.raises(UsageError, match="marked as unsafe"):
        evaluate_tasks(file, ["mine"], tasks_path=folder)


def test_the_extra_is_named_where_it_is_missing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'bitexport\[tasks\]'"):
        evaluate_tasks(file, ["local_facts"])


def test_the_harness_own_command_knows_the_model(file: Path, tmp_path: Path) -> None:
    """With a task file that registers the class: 0.4.13 does not find it by itself."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "bitexport", "--model_args", f"file={file}"),
            *("--tasks", f"{TASKS / 'bitexport.yaml'},local_facts", "--include_path", str(TASKS)),
            *("--limit", "2", "--output_path", str(tmp_path / "results")),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "|local_facts|" in done.stdout
    (results,) = (tmp_path / "results").rglob("results_*.json")
    document = json.loads(results.read_text(encoding="utf-8"))
    assert document["config"]["model"] == "bitexport"
    assert document["results"]["local_facts"]["acc,none"] in (0.0, 0.5, 1.0)


def test_no_pytorch(file: Path) -> None:
    """Neither the class nor the harness needs it."""
    program = (
        "import sys; from bitexport.evaluation.tasks import evaluate_tasks; evaluate_tasks("
        f"{str(file)!r}, ['local_facts', 'local_answers'], limit=1, tasks_path={str(TASKS)!r}); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.strip() == "[]"


def test_more_examples_than_there_are(gguf_of: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="give a smaller --num-fewshot"):
        evaluate_tasks(gguf_of("packed-multiply"), ["local_facts"], tasks_path=TASKS, num_fewshot=50)
