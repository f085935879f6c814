"""Students on disk: saved, loaded for more training, and converted without a flag."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitexport.convert import convert
from bitexport.doctor import doctor
from bitexport.errors import CheckpointError, UnsupportedError
from bitexport.families import family_of
from bitexport.gguf.reader import read_gguf
from bitexport.parity import parity
from bitexport.parity.report import verdict
from bitexport.train.student.bitlinear import BitLinear, quantize_weight
from bitexport.train.student.calibration import calibrate
from bitexport.train.student.checkpoint import load_causal_lm, save_checkpoint
from bitexport.train.student.fresh import build_model
from bitexport.train.student.pack import export_packed
from bitexport.train.student.surgery import make_student
from tests.support import tiny_models
from tests.support.gguf_files import values
from tests.support.tiny_models import MODEL_CLASSES, Shape, tiny_model, write_tokenizer
from tests.train.conftest import tiny_config
from tests.train.student.test_surgery import FLOAT, batch, float_model, logits


def trained(architecture: str, folder: Path, **options: Any) -> Any:
    """A student after one optimizer step, saved in ``folder``."""
    # transformers gives Qwen2 this pre-tokenizer, whatever tokenizer.json says
    write_tokenizer(folder / "tokenizer", "qwen2" if architecture == "qwen2" else "gpt2")
    student = make_student(float_model(architecture, **options))
    calibrate(student, [batch()])
    inputs = batch(1)
    student.config.use_cache = False  # as the Trainer does
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    student.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    save_checkpoint(student.eval(), AutoTokenizer.from_pretrained(folder / "tokenizer"), folder / "student")
    return student


@pytest.mark.parametrize("architecture", FLOAT)
def test_a_student_survives_saving_converting_and_packing(architecture: str, tmp_path: Path) -> None:
    student = trained(architecture, tmp_path, tied=architecture != "qwen2")
    folder, file = tmp_path / "student", tmp_path / "m.gguf"
    loaded = load_causal_lm(folder)
    assert not loaded.training
    assert torch.equal(logits(loaded, batch(2)), logits(student, batch(2)))

    convert(folder, file, embed_type="f16")
    found = parity(folder, file, ["def add(left, right):\n    return left"], tokens=3)
    assert found.passed, verdict(found)

    export_packed(folder, tmp_path / "packed")
    convert(tmp_path / "packed", tmp_path / "packed.gguf", embed_type="f16")
    from_master, from_packed = read_gguf(file), read_gguf(tmp_path / "packed.gguf")
    family = family_of({"architectures": [MODEL_CLASSES[architecture].__name__]}, list(student.state_dict()))
    for name, module in student.named_modules():
        if isinstance(module, BitLinear):
            target = family.gguf_name(f"{name}.weight")
            assert target is not None
            forward = quantize_weight(module.weight).detach().numpy()
            np.testing.assert_array_equal(values(from_packed, target), forward, err_msg=name)
            # convert sums the mean of master weights more exactly than the forward pass
            found_values = values(from_master, target)
            np.testing.assert_array_equal(np.sign(found_values), np.sign(forward), err_msg=name)
            np.testing.assert_allclose(found_values, forward, rtol=3e-7, err_msg=name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trained("qwen3", folder)
    return folder / "student"


def test_the_configuration(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["Qwen3SubLNForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["use_cache"] is True
    quantization = config["quantization_config"]
    found = {key: quantization[key] for key in ("quant_method", "linear_class", "quantization_mode")}
    assert found == {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    assert {tensor.dtype for tensor in load_file(saved / "model.safetensors").values()} == {torch.float32}
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (saved / "chat_template.jinja").exists()


def test_doctor_finds_nothing_wrong_with_the_checkpoint(saved: Path) -> None:
    report = doctor(saved)
    # after one step the model knows no text, but nothing is wrong with the checkpoint
    assert report.verdict.name == "undertrained", report.verdict


def test_training_continues_where_it_stopped(saved: Path) -> None:
    first, second = load_causal_lm(saved), load_causal_lm(saved)
    assert first.lm_head.weight is first.model.embed_tokens.weight
    for model in (first, second):
        model(**batch(3), labels=batch(3)["input_ids"]).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_student_in_shards(saved: Path, tmp_path: Path) -> None:
    model = load_causal_lm(saved)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_causal_lm(tmp_path), batch()), logits(model, batch()))


@pytest.mark.parametrize("architecture", FLOAT)
def test_a_teacher_equals_that_of_transformers(architecture: str, tmp_path: Path) -> None:
    teacher = float_model(architecture).to(torch.bfloat16)
    teacher.save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path)
    assert type(loaded) is MODEL_CLASSES[architecture]
    assert loaded.dtype == torch.float32
    assert not any(isinstance(module, BitLinear) for module in loaded.modules())
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(loaded, batch()), logits(expected, batch()))
    assert make_student(loaded).dtype == torch.float32


def test_a_pretrained_bitnet_model(tmp_path: Path) -> None:
    master = tmp_path / "master"
    build_model(tiny_config(tmp_path, architecture="bitnet", ternary=True), 0).save_pretrained(master)
    loaded = load_causal_lm(master)
    assert sum(isinstance(module, BitLinear) for module in loaded.modules()) == 2 * 7
    expected = AutoModelForCausalLM.from_pretrained(master, dtype=torch.float32)
    ids = torch.randint(300, (2, 16), generator=torch.manual_seed(0))
    assert torch.equal(logits(loaded, {"input_ids": ids}), logits(expected, {"input_ids": ids}))


def test_a_quantized_model_without_sub_norms(tmp_path: Path) -> None:
    tiny = tiny_model(Shape(hidden=64, ffn=128), architecture="llama")
    loaded = load_causal_lm(tiny_models.save_checkpoint(tiny, tmp_path))
    assert sum(isinstance(module, BitLinear) for module in loaded.modules()) == 2 * 7
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(loaded, batch()), logits(expected, batch()))


def damaged(saved: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    shutil.copytree(saved, folder)
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


NORM = "model.layers.1.mlp.ffn_sub_norm.weight"


def test_tensors_are_exactly_those_of_the_model(saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path / "less", lambda tensors: tensors.pop(NORM))
    with pytest.raises(CheckpointError, match=rf"1 tensors are missing: {NORM}; expected"):
        load_causal_lm(folder)
    folder = damaged(saved, tmp_path / "more", lambda tensors: tensors.update(extra=torch.ones(1)))
    with pytest.raises(CheckpointError, match="1 tensors are unexpected: extra; expected"):
        load_causal_lm(folder)
    folder = damaged(saved, tmp_path / "other", lambda tensors: tensors.update({NORM: torch.ones(3)}))
    with pytest.raises(CheckpointError, match=rf"1 tensors are mismatched: {NORM}; expected"):
        load_causal_lm(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_class": "bitlinear"}, r"\['bitlinear', 'online', False\]; expected \['autobitlinear'"),
        ({"use_rms_norm": True}, r"\['autobitlinear', 'online', True\]; expected \['autobitlinear'"),
    ],
)
def test_other_quantizations(saved: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    shutil.copytree(saved, tmp_path / "other")
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"] |= changes
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=message):
        load_causal_lm(tmp_path / "other")


@pytest.mark.parametrize("architectures", [None, ["NoSuchForCausalLM"], ["BertModel"]])
def test_other_classes(saved: Path, tmp_path: Path, architectures: list[str] | None) -> None:
    shutil.copytree(saved, tmp_path / "other")
    config = json.loads((saved / "config.json").read_text()) | {"architectures": architectures}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="expected one of transformers' causal LMs"):
        load_causal_lm(tmp_path / "other")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_causal_lm(tmp_path / "nowhere")
