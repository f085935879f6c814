"""Failures of a training run: one clear line, and nothing lost. Tiny models, through the command line."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitexport.cli import main
from bitexport.reference.model import load_tokenizer
from bitexport.train.config import TrainConfig
from bitexport.train.data.loading import load_data, template_of
from bitexport.train.loss_curve import read_log
from bitexport.train.run_folder import last_checkpoint
from tests.train.conftest import student_config


def command(config: TrainConfig, *arguments: str) -> list[str]:
    """The arguments of ``bitexport``, or of ``python -m bitexport``."""
    path = Path(config.run_dir).parent / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    return ["train", str(path), *arguments]


def run(capsys: pytest.CaptureFixture[str], config: TrainConfig, *arguments: str) -> tuple[int, str]:
    """Exit code, and the last line on stderr."""
    with pytest.raises(SystemExit) as end:
        main(command(config, *arguments))
    return int(str(end.value.code)), capsys.readouterr().err.splitlines()[-1]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of every file to ``size`` bytes: a write beyond it fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def stage1(student_run: Path) -> str:
    return str(student_run / "stage1" / "model")


def poisoned(teacher: Path, folder: Path) -> str:
    """The teacher with one NaN."""
    shutil.copytree(teacher / "pretrain" / "model", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("stage", "changes", "code", "words"),
    [
        ("3", {"data": ["jsonl:/nowhere/a.jsonl"]}, 2, "/nowhere/a.jsonl"),
        ("3", {"relation_heads": 7}, 2, "relation_heads = 7; expected a divisor of the widths"),
        ("3", {"relation_layer": 2}, 2, "relation_layer = 2; expected 0 to 1"),
        ("3", {"teacher": "/nowhere"}, 1, "/nowhere does not exist; expected a checkpoint folder"),
        ("3", {"student": "/nowhere"}, 1, "/nowhere does not exist; expected a checkpoint folder"),
        ("3", {"student": ""}, 2, "run --stage 2 first"),
        ("2", {"corpus": []}, 2, "corpus = []; expected at least one source"),
        ("all", {"student": "", "stage3_tokens": 0}, 2, "stage3_tokens = 0; expected a number above 0"),
        ("all", {}, 2, 'expected "" with --stage all'),
        ("all", {"student": "", "relation_heads": 7}, 2, "relation_heads = 7; expected a divisor"),
        ("1", {"report_to": "wandb"}, 2, "pip install wandb"),
        ("4", {}, 2, "stage '4'; expected pretrain, 1, 2, 3, all"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_model(
    capsys: pytest.CaptureFixture[str],
    teacher: Path,
    stage1: str,
    tmp_path: Path,
    stage: str,
    changes: dict[str, object],
    code: int,
    words: str,
) -> None:
    config = student_config(tmp_path, teacher, **({"student": stage1} | changes))
    found, line = run(capsys, config, "--stage", stage)
    assert (found, words in line) == (code, True), line
    assert not [*Path(config.run_dir).rglob("*.safetensors")]


def test_a_teacher_with_more_tokens_needs_the_projector(
    capsys: pytest.CaptureFixture[str], teacher: Path, stage1: str, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher / "pretrain" / "model")
    model.resize_token_embeddings(310)
    model.save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(teacher / "pretrain" / "model").save_pretrained(tmp_path / "wide")
    changes: dict[str, object] = {"student": stage1, "teacher": str(tmp_path / "wide"), "stage3_tokens": 900}
    code, line = run(capsys, student_config(tmp_path, teacher, **changes), "--stage", "3")
    assert code == 2
    assert "logit_projector = true" in line
    config = student_config(tmp_path, teacher, **changes, logit_projector=True, report_to="tensorboard")
    assert run(capsys, config, "--stage", "3")[0] == 0
    stage = Path(config.run_dir) / "stage3"
    assert "objective.safetensors" in [path.name for path in stage.glob("checkpoint-*/*")]
    assert [*stage.glob("runs/*/events*")], "TensorBoard, by default"


def test_nan_names_the_term_and_keeps_the_checkpoint(
    capsys: pytest.CaptureFixture[str], teacher: Path, stage1: str, tmp_path: Path
) -> None:
    """The teacher's NaN appears late in the run, when the curriculum adds the term that uses the teacher."""
    changes: dict[str, object] = {"logits_weight": 0.0, "relation_weight": 0.0, "contrastive_weight": 1.0}
    changes |= {"curriculum": True, "student": stage1, "teacher": poisoned(teacher, tmp_path / "bad")}
    config = student_config(tmp_path, teacher, **changes)
    code, line = run(capsys, config, "--stage", "3")
    stage = Path(config.run_dir) / "stage3"
    assert code == 1
    assert "step 8: the term contrastive is nan" in line
    assert f"{stage / 'checkpoint-4'} is the last good checkpoint" in line
    assert not (stage / "model").exists()
    kept = load_file(stage / "checkpoint-4" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"relation_weight": 3e38}, "step 1: the norm of the gradient is "),
        ({"learning_rate": 1e30}, "step 2: the "),
        (
            {"learning_rate": 1e39, "save_every": 1},
            "step 1: after it model.embed_tokens.weight is not finite",
        ),
    ],
)
def test_what_diverges_is_not_saved(
    capsys: pytest.CaptureFixture[str],
    teacher: Path,
    stage1: str,
    tmp_path: Path,
    changes: dict[str, object],
    words: str,
) -> None:
    config = student_config(tmp_path, teacher, student=stage1, **changes)
    code, line = run(capsys, config, "--stage", "3")
    assert (code, words in line) == (1, True), line
    assert "there is no checkpoint yet" in line
    assert not [*Path(config.run_dir).rglob("*.safetensors")]


def test_a_full_disk_leaves_no_incomplete_model(
    capsys: pytest.CaptureFixture[str], teacher: Path, stage1: str, tmp_path: Path
) -> None:
    config = student_config(tmp_path, teacher)
    with largest_file(100_000):
        code, line = run(capsys, config, "--stage", "1")
    assert code == 1
    assert "stage1/model.part: cannot be saved" in line
    assert [path.name for path in (Path(config.run_dir) / "stage1").iterdir()] == []
    config = student_config(tmp_path, teacher, student=stage1, save_every=100, stage3_tokens=8000)
    load_data(config.data, config, template_of(config), load_tokenizer(Path(stage1)), 8000)  # larger files
    with largest_file((teacher / "held_out.jsonl").stat().st_size + 200):
        code, line = run(capsys, config, "--stage", "3")  # ends in log.jsonl
    assert code == 1
    assert line.startswith(f"error: {config.run_dir}"), line
    assert "make room" in line
    steps = [entry["step"] for entry in read_log(Path(config.run_dir) / "stage3" / "log.jsonl")]
    assert 0 < len(steps) < 18


def interrupted(config: TrainConfig, number: int, *, after: int, resume: bool) -> tuple[int, str]:
    """Start the module as a process, send it the signal once ``after`` steps are logged."""
    arguments = ["-m", "bitexport", *command(config, "--stage", "3", *(["--resume"] if resume else []))]
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True)
    log, end = Path(config.run_dir) / "stage3" / "log.jsonl", time.monotonic() + 100
    while not log.exists() or max([line["step"] for line in read_log(log)], default=0) < after:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(60), process.communicate()[1]


def test_a_run_that_is_stopped_repeatedly_ends_like_an_uninterrupted_one(
    capsys: pytest.CaptureFixture[str], teacher: Path, stage1: str, tmp_path: Path
) -> None:
    """Ctrl-C, a full disk, kill -9 in the middle of a checkpoint."""
    changes: dict[str, object] = {
        "student": stage1,
        "threads": 1,
        "stage3_tokens": 14000,
        "logit_projector": True,
    }
    whole = student_config(tmp_path / "whole", teacher, **changes)
    assert run(capsys, whole, "--stage", "3")[0] == 0
    config = student_config(
        tmp_path / "cut", teacher, **(changes | {"data": whole.data, "corpus": whole.corpus})
    )
    stage = Path(config.run_dir) / "stage3"

    code, said = interrupted(config, signal.SIGINT, after=2, resume=False)
    assert code == 130
    kept = last_checkpoint(stage)
    assert kept is not None
    assert f"{kept} is saved: continue with --resume" in said
    with largest_file(
        (kept / "model.safetensors").stat().st_size + 10_000
    ):  # the optimizer's state is larger
        code, line = run(capsys, config, "--stage", "3", "--resume")
    assert code == 1
    assert ": cannot be saved: " in line
    assert f"{kept} is kept; make room, then continue with --resume" in line
    assert [*stage.glob("checkpoint-*")] == [kept]

    at = int(kept.name.rpartition("-")[2])
    code, said = interrupted(config, signal.SIGKILL, after=at + 9, resume=True)
    assert code == -signal.SIGKILL
    newest = last_checkpoint(stage)
    assert newest not in (kept, None)
    (newest / "complete").unlink()
    (newest / "model.safetensors").write_bytes(b"half of it")
    with (stage / "log.jsonl").open("a") as file:
        file.write('{"step": 99, "tok')
    assert run(capsys, config, "--stage", "3", "--resume")[0] == 0

    logs = [read_log(Path(each.run_dir) / "stage3" / "log.jsonl") for each in (whole, config)]
    for log in logs:
        for line in log:
            del line["seconds"]
    assert logs[0] == logs[1]
    models = [
        load_file(Path(each.run_dir) / "stage3" / "model" / "model.safetensors") for each in (whole, config)
    ]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not [*stage.glob("*.part")]


def test_patience_survives_a_resumed_run(
    capsys: pytest.CaptureFixture[str], teacher: Path, stage1: str, tmp_path: Path
) -> None:
    steps: dict[str, object] = {"stage3_tokens": 8000, "save_every": 5, "eval_every": 2}
    config = student_config(tmp_path, teacher, student=stage1, early_stopping=True, **steps)
    assert run(capsys, config, "--stage", "3")[0] == 0
    stage = Path(config.run_dir) / "stage3"
    shutil.rmtree(stage / "model")
    shutil.rmtree(max(stage.glob("checkpoint-*")))
    first = last_checkpoint(stage)
    assert first is not None
    state = json.loads((first / "trainer_state.json").read_text())
    stopping = state["stateful_callbacks"]["WarmedEarlyStopping"]
    assert stopping["args"]["warmup_steps"] == 1000
    stopping["args"]["warmup_steps"] = 0
    stopping["attributes"] |= {"best": 0.0, "waited": 19}
    (first / "trainer_state.json").write_text(json.dumps(state))
    assert run(capsys, config, "--stage", "3", "--resume")[0] == 0
    assert first.name == "checkpoint-15"
    assert json.loads((stage / "result.json").read_text())["steps"] == 16
