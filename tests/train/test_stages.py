"""The stages on tiny models: what they write, and what happens when they are interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bitexport.convert import convert
from bitexport.errors import OutputError, UsageError
from bitexport.parity import parity
from bitexport.train.config import TrainConfig, load_config
from bitexport.train.loss_curve import read_log
from bitexport.train.stages import train
from bitexport.train.student.checkpoint import load_causal_lm
from tests.train.conftest import WORDS, student_config, tiny_config


def quiet(config: TrainConfig, stage: str, **rest: Any) -> list[str]:
    said: list[str] = []
    train(config, stage, say=said.append, **rest)
    return said


def losses(run: Path, stage: str) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in read_log(run / stage / "log.jsonl") if "loss" in line}


def test_a_teacher_is_an_ordinary_float_checkpoint_that_learned(teacher: Path) -> None:
    folder = teacher / "pretrain" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    values = losses(teacher, "pretrain")
    assert values[max(values)] < 0.75 * values[1]
    rows = [json.loads(line) for line in (teacher / "held_out.jsonl").read_text().splitlines()]
    assert rows
    assert rows[0].keys() == {"prompt", "answer", "source"}
    assert rows[0]["prompt"] == f"<|en|>{rows[0]['source']}<|fr|>"


def test_a_student_converts_and_agrees_with_cpp(student_run: Path, tmp_path: Path) -> None:
    """Without flags: the checkpoint describes itself."""
    model = student_run / "stage3" / "model"
    for each in (model, max((student_run / "stage3").glob("checkpoint-*"))):
        convert(each, tmp_path / f"{each.name}.gguf", embed_type="f16")
    report = parity(model, tmp_path / "model.gguf", prompts=["<|en|>red house<|fr|>"], tokens=4)
    assert report.passed


def test_every_term_is_logged_raw_and_weighted(student_run: Path) -> None:
    line = next(line for line in read_log(student_run / "stage3" / "log.jsonl") if "loss" in line)
    for name, weight in (("next_token", 1.0), ("logits", 1.0), ("relation", 10.0)):
        assert line[f"weighted_{name}"] == pytest.approx(weight * line[name])
    total = sum(value for name, value in line.items() if name.startswith("weighted_"))
    assert line["loss"] == pytest.approx(total)
    assert (student_run / "stage3" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_saved_model_is_the_one_of_the_last_forward_pass(student_run: Path) -> None:
    """Saved master weights quantize to the weights that BitLinear multiplies with."""
    model = load_causal_lm(student_run / "stage3" / "model")
    kept = [module for module in model.modules() if getattr(module, "blend", None) is not None]
    assert len(kept) == 14
    assert all(module.blend == 1 for module in kept)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_repeats_an_uninterrupted_one_to_the_bit(
    teacher: Path, tmp_path: Path, optimizer: str
) -> None:
    """Interrupted after step 6 of a stage that uses everything with state; checkpoints are at 4 and 8."""
    changes: dict[str, object] = {
        "optimizer": optimizer,
        "lambda_warmup_ratio": 0.5,
        "curriculum": True,
        "feature_weight": 0.1,
        "router": True,
        "diffusion_weight": 0.5,
        "diffusion_warmup_ratio": 0.3,
        "log_every": 3,
        "stage3_tokens": 2800,
    }
    whole = student_config(tmp_path / "whole", teacher, **changes)
    quiet(whole, "all")
    cut = student_config(
        tmp_path / "cut", teacher, **(changes | {"data": whole.data, "corpus": whole.corpus})
    )
    shutil.copytree(Path(whole.run_dir), Path(cut.run_dir))
    stage = Path(cut.run_dir) / "stage3"
    shutil.rmtree(stage / "model")
    for folder in stage.glob("checkpoint-*"):
        if folder.name != "checkpoint-4":
            shutil.rmtree(folder)
    if not (stage / "checkpoint-4").exists():
        pytest.fail("the run kept no checkpoint-4: lower stage3_tokens")
    quiet(cut, "3", resume=True)
    assert losses(Path(cut.run_dir), "stage3") == losses(Path(whole.run_dir), "stage3")
    weights = [load_causal_lm(Path(c.run_dir) / "stage3" / "model").state_dict() for c in (whole, cut)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_every_stage_saves_a_model_that_transformers_runs(student_run: Path) -> None:
    """What becomes of a Llama with SubLN; its checkpoints have the same form."""
    folders = [*student_run.glob("stage*/model"), *student_run.glob("stage*/checkpoint-*")]
    assert len(folders) >= 5
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        assert (config["architectures"], config["model_type"]) == (["BitNetForCausalLM"], "bitnet"), folder
    ids = torch.randint(300, (2, 16), generator=torch.manual_seed(0))
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load_causal_lm(folders[0])(ids).logits)


def test_a_run_of_an_earlier_version_is_resumed(teacher: Path, student_run: Path, tmp_path: Path) -> None:
    """It saved students as instances of their teacher's class."""
    run = Path(shutil.copytree(student_run, tmp_path / "run"))
    shutil.rmtree(run / "stage3" / "model")
    llama = json.loads((teacher / "pretrain" / "model" / "config.json").read_text())
    for path in run.glob("*/*/config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**llama, "quantization_config": config["quantization_config"]}))
    last = max((run / "stage3").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(last)
    quiet(load_config(run / "config.toml", run_dir=str(run)), "3", resume=True)
    models = [folder / "stage3" / "model" for folder in (student_run, run)]
    assert (models[0] / "model.safetensors").read_bytes() == (models[1] / "model.safetensors").read_bytes()
    assert json.loads((models[1] / "config.json").read_text())["architectures"] == ["BitNetForCausalLM"]


def test_a_run_is_not_overwritten_and_a_resumed_one_must_be_the_same(teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "run")
    with pytest.raises(OutputError, match="already contains a run; add --resume"):
        quiet(tiny_config(tmp_path), "pretrain")
    with pytest.raises(UsageError, match="was started with data"):
        quiet(tiny_config(tmp_path), "pretrain", resume=True)


def test_a_stage_before_its_predecessor(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run --stage 2 first"):
        quiet(student_config(tmp_path, teacher), "3")
    with pytest.raises(UsageError, match="teacher is not set"):
        quiet(tiny_config(tmp_path), "1")


def test_a_failed_start_leaves_no_tokenizer_for_the_next_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no record fits"):
        quiet(tiny_config(tmp_path, sequence_length=4), "pretrain")
    quiet(tiny_config(tmp_path, vocab_size=280, pretrain_tokens=512), "pretrain")
    tokenizer = json.loads((tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == 280


def stream(folder: Path, texts: list[str]) -> list[str]:
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return [f"hub:{folder}:train:text"]


def words(number: int) -> str:
    """Up to twelve words, chosen by the bits of ``number``; texts with figures would all count as one."""
    return " ".join(WORDS[name] for i, name in enumerate([*WORDS] * 2) if number >> i & 1)


def test_a_stream_is_read_as_far_as_its_stage_needs(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages 1 and 3, without a budget for stage 2; stage 1 keeps nothing; a second run reads nothing."""
    data = stream(tmp_path / "set", [words(number) for number in range(4096)])
    settings: dict[str, object] = {"template": "plain", "stage2_tokens": 0, "stage3_tokens": 1500}
    config = student_config(tmp_path, teacher, data=data, **settings, data_cache=str(tmp_path / "cache"))
    quiet(config, "1")
    assert not (tmp_path / "cache").exists()
    quiet(config, "3")
    (tokens,) = (tmp_path / "cache").glob("*/tokens.bin")
    assert 1500 <= tokens.stat().st_size / 4 < 3000  # uint32, with those held out
    again = student_config(tmp_path, teacher, **{**vars(config), "run_dir": str(tmp_path / "again")})
    monkeypatch.setattr("bitexport.train.data.cache.read_source", lambda _: pytest.fail("read again"))
    student = str(Path(config.run_dir) / "stage1" / "model")
    quiet(student_config(tmp_path, teacher, **{**vars(again), "student": student}), "3")


def test_a_stream_with_nothing_held_out(teacher: Path, tmp_path: Path) -> None:
    corpus = stream(tmp_path / "set", ["red"] * 4000)
    config = student_config(tmp_path, teacher, corpus=corpus)
    quiet(config, "1")
    with pytest.raises(UsageError, match=r"\b0 tokens (held out|for training)"):
        quiet(config, "2")
