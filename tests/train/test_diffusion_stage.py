"""A stage that trains block diffusion: what it writes, and mistakes in its settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitexport.checkpoint.block_diffusion import BlockDiffusion, diffusion_settings
from bitexport.convert import convert
from bitexport.errors import UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.reference.model import load_tokenizer
from bitexport.train.loss_curve import read_log
from bitexport.train.stages import train
from bitexport.train.student.checkpoint import load_causal_lm
from bitexport.train.student.diffusion import prepare_diffusion
from tests.train.conftest import student_config, tiny_config


def test_the_checkpoint_and_its_file_say_what_they_are(
    teacher: Path, student_run: Path, tmp_path: Path
) -> None:
    """From a student that exists, with the teacher's terms although the student has one token more."""
    config = student_config(
        tmp_path,
        teacher,
        student=str(student_run / "stage3" / "model"),
        diffusion_weight=0.5,
        diffusion_block_size=4,
        stage3_tokens=1000,
        eval_every=2,
    )
    train(config, "3", say=lambda _: None)
    folder = Path(config.run_dir) / "stage3" / "model"
    saved = json.loads((folder / "config.json").read_text())
    assert saved["architectures"] == ["BitNetForCausalLM"]
    assert saved["block_diffusion"] == {"block_size": 4, "mask_token_id": 300, "token_shift": True}
    assert saved["vocab_size"] == 301
    assert load_tokenizer(folder).mask_token_id == 300
    assert load_causal_lm(folder).get_output_embeddings().weight.shape[0] == 301
    lines = read_log(Path(config.run_dir) / "stage3" / "log.jsonl")
    trained = next(line for line in lines if "loss" in line)
    assert trained["weighted_diffusion"] == pytest.approx(0.5 * trained["diffusion"])
    assert trained["logits"] > 0
    assert next(line for line in lines if "held_out_loss" in line)["held_out_diffusion_loss"] > 0

    convert(folder, tmp_path / "model.gguf", embed_type="f16")
    metadata = read_gguf(tmp_path / "model.gguf").metadata
    assert metadata["tokenizer.ggml.mask_token_id"] == 300
    assert metadata["diffusion.shift_logits"] is True
    assert metadata["bitexport.diffusion.block_size"] == 4
    # continuing changes neither the vocabulary nor the settings
    again = student_config(
        tmp_path / "again", teacher, student=str(folder), diffusion_weight=0.5, stage3_tokens=300
    )
    train(again, "3", say=lambda _: None)
    found = json.loads((Path(again.run_dir) / "stage3" / "model" / "config.json").read_text())
    assert diffusion_settings(found) == BlockDiffusion(4, 300, token_shift=True)
    assert found["vocab_size"] == 301


@pytest.mark.parametrize(
    ("own", "changes", "expected", "said"),
    [
        ({}, {}, BlockDiffusion(8, 2), ""),
        ({}, {"diffusion_block_size": 16}, BlockDiffusion(16, 2), ""),
        ({"block_size": 16, "token_shift": False}, {}, BlockDiffusion(16, 2, token_shift=False), ""),
        (
            {"block_size": 16, "token_shift": False},
            {"diffusion_block_size": 4},
            BlockDiffusion(4, 2, token_shift=False),
            "the model had blocks of 16 tokens and the mask token 2, and now has blocks of 4 tokens",
        ),
        ({"bd_size": 32}, {}, BlockDiffusion(32, 2), ""),
        ({"bd_size": 32}, {"diffusion_block_size": 32}, BlockDiffusion(32, 2), ""),
    ],
)
def test_a_prepared_model_keeps_its_settings(
    student_run: Path,
    tmp_path: Path,
    own: dict[str, object],
    changes: dict[str, object],
    expected: BlockDiffusion,
    said: str,
) -> None:
    source = student_run / "stage3" / "model"
    model, tokenizer = load_causal_lm(source), load_tokenizer(source)
    tokenizer.add_special_tokens({"mask_token": tokenizer.convert_ids_to_tokens(2)})
    if "bd_size" in own:
        model.config.bd_size, model.config.mask_token_id = own["bd_size"], 2
    elif own:
        model.config.block_diffusion = {"mask_token_id": 2, **own}
    heard: list[str] = []
    prepare_diffusion(model, tokenizer, tiny_config(tmp_path, diffusion_weight=1.0, **changes), heard.append)
    assert diffusion_settings(model.config.to_dict()) == expected
    assert len(heard) == (1 if said else 0)
    assert said in "".join(heard)


def test_blocks_of_the_model_must_fit_a_sequence(student_run: Path, tmp_path: Path) -> None:
    source = student_run / "stage3" / "model"
    model, tokenizer = load_causal_lm(source), load_tokenizer(source)
    model.config.block_diffusion = {"mask_token_id": 2, "block_size": 48}
    with pytest.raises(UsageError, match="sequence_length = 48; expected more than the 48 tokens of a block"):
        prepare_diffusion(model, tokenizer, tiny_config(tmp_path, diffusion_weight=1.0))


def test_an_ordinary_word_does_not_become_the_mask_token(student_run: Path, tmp_path: Path) -> None:
    source = student_run / "stage3" / "model"
    model, tokenizer = load_causal_lm(source), load_tokenizer(source)
    word = tokenizer.convert_ids_to_tokens(100)
    config = tiny_config(tmp_path, diffusion_weight=1.0, diffusion_mask_token=word)
    with pytest.raises(
        UsageError, match=r"is an ordinary token \(100\) that texts contain; expected a special"
    ):
        prepare_diffusion(model, tokenizer, config)
    assert tokenizer.mask_token is None


def test_a_mask_token_with_another_role_is_refused(teacher: Path, student_run: Path, tmp_path: Path) -> None:
    config = student_config(
        tmp_path,
        teacher,
        student=str(student_run / "stage3" / "model"),
        diffusion_weight=0.5,
        diffusion_mask_token="<|endoftext|>",
    )
    with pytest.raises(UsageError, match=r"diffusion_mask_token = '<\|endoftext\|>' is the tokenizer's"):
        train(config, "3", say=lambda _: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion_block_size": 1}, "diffusion_block_size = 1; expected 2 to 512"),
        ({"diffusion_block_size": 4096}, "diffusion_block_size = 4096; expected 2 to 512"),
        (
            {"diffusion_weight": 1.0, "diffusion_block_size": 48},
            "diffusion_block_size = 48; expected less than",
        ),
        ({"diffusion_max_masked": 1.5}, "diffusion_max_masked = 1.5; expected"),
        ({"diffusion_min_masked": 0.5, "diffusion_max_masked": 0.4}, "diffusion_max_masked = 0.4; expected"),
        ({"diffusion_warmup_ratio": 2.0}, "diffusion_warmup_ratio = 2.0; expected 0 to 1"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(tmp_path, **changes)
