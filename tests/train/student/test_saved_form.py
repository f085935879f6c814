"""A saved student is a model that transformers itself runs as it was trained, and as C++ runs it."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bitexport.convert import convert
from bitexport.doctor import doctor
from bitexport.errors import CheckpointError
from bitexport.evaluation import evaluate
from bitexport.metrics.logits import compare_logits, summarize
from bitexport.parity import parity
from bitexport.parity.report import verdict
from bitexport.reference import load_reference
from bitexport.runtime.session import Session
from bitexport.train.student import modeling_subln
from bitexport.train.student.checkpoint import load_causal_lm, save_checkpoint
from bitexport.train.student.pack import export_packed
from bitexport.train.student.saved_form import MODELING_FILE, STUDENTS, resave
from tests.support.decoding import greedy
from tests.train.student.test_checkpoint import trained
from tests.train.student.test_surgery import batch, logits

PROMPT = "def add(left, right):\n    return left"


@dataclass(frozen=True)
class Case:
    """A student: its base model, and the class and model_type that it is saved as."""

    base: str
    saved: str
    model_type: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def has_code(self) -> bool:
        return self.model_type != "bitnet"


CASES = {
    "Llama": Case("llama", "BitNetForCausalLM", "bitnet"),
    "Llama, untied, with biases in attention": Case(
        "llama", "BitNetForCausalLM", "bitnet", {"tied": False, "attention_bias": True}
    ),
    "Llama with wide heads": Case("llama", "LlamaSubLNForCausalLM", "llama_subln", {"head_dim": 24}),
    "Llama with biases in the MLP": Case(
        "llama", "LlamaSubLNForCausalLM", "llama_subln", {"mlp_bias": True, "attention_bias": True}
    ),
    "Qwen2": Case("qwen2", "Qwen2SubLNForCausalLM", "qwen2_subln", {"tied": False}),
    "Qwen3": Case("qwen3", "Qwen3SubLNForCausalLM", "qwen3_subln"),
    "HunYuan": Case("hunyuan", "HunYuanDenseV1SubLNForCausalLM", "hunyuan_v1_dense_subln"),
}
WITH_CODE = [name for name, case in CASES.items() if case.has_code]


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where transformers copies modelling files before it runs them; not the user's own folder."""
    path = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        yield
    sys.path[:] = path


@dataclass(frozen=True)
class Student:
    """A trained student in memory, and the folders in which it is saved."""

    case: Case
    model: Any
    master: Path
    packed: Path


@pytest.fixture(scope="module", params=CASES)
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Student:
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("student")
    with torch.compiler.set_stance("force_eager"):
        model = trained(case.base, folder, **case.options)
        export_packed(folder / "student", folder / "packed")
    return Student(case, model, folder / "student", folder / "packed")


def native(folder: Path, **options: Any) -> Any:
    """The model as anybody loads it, with nothing of ours but the file in the folder."""
    options.setdefault("trust_remote_code", (folder / MODELING_FILE.name).exists())
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def test_the_form(student: Student) -> None:
    for folder in (student.master, student.packed):
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == [student.case.saved]
        assert config["model_type"] == student.case.model_type
        assert config["hidden_act"] == "silu"
        assert config["quantization_config"]["quant_method"] == "bitnet"
        assert (folder / MODELING_FILE.name).exists() == ("auto_map" in config) == student.case.has_code
        if not student.case.has_code:
            assert not {"head_dim", "mlp_bias", "pretraining_tp"} & config.keys()
            assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
            assert config["rms_norm_eps"] == 1e-6


def test_transformers_computes_what_was_trained(student: Student) -> None:
    """To the bit from master weights; packed, embeddings are rounded and scales multiply last."""
    model = native(student.master)
    assert type(model).__name__ == student.case.saved
    assert model.dtype == torch.float32
    inputs = batch(2)
    inputs["attention_mask"][0, :3] = 0  # as a shorter text in a batch has it
    expected = logits(student.model, inputs)
    assert torch.equal(logits(model, inputs), expected)
    difference = (logits(native(student.packed), inputs) - expected).norm() / expected.norm()
    assert difference < 1e-2


@pytest.mark.parametrize("form", ["master", "packed"])
def test_transformers_reference_and_cpp_agree(student: Student, tmp_path: Path, form: str) -> None:
    """Logits, and greedy text with transformers' own tokenizer and key-value cache."""
    folder = getattr(student, form)
    reference = load_reference(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=student.case.has_code)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert reference.tokenize(PROMPT) == ids
    model = native(folder, attn_implementation="eager")
    with reference.threads():
        found = logits(model, inputs)[0].numpy()
        written = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()
    np.testing.assert_array_equal(found, reference.logits(ids))
    assert ids + greedy(reference, ids, 12) == written

    report = convert(folder, tmp_path / "m.gguf", embed_type="f16", strict=True)
    assert report.architecture == "bitnet-b1.58"
    with Session(tmp_path / "m.gguf", n_ctx=64) as session:
        assert session.tokenize(PROMPT) == ids
        assert summarize(compare_logits(found, session.logits(ids))).cosine_min >= 0.9999
        assert ids + greedy(session, ids, 12) == written
    proof = parity(folder, tmp_path / "m.gguf", [PROMPT])
    assert proof.passed, verdict(proof)
    assert proof.aligned is not None
    assert proof.aligned.agreement.cosine_min >= 0.9999


def test_training_goes_on_in_the_saved_form(student: Student, tmp_path: Path) -> None:
    """Loaded, trained by one more step and saved again, as from one stage to the next."""
    model = load_causal_lm(student.master)
    assert torch.equal(logits(model, batch(2)), logits(student.model, batch(2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()(**batch(3), labels=batch(3)["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    save_checkpoint(model.eval(), AutoTokenizer.from_pretrained(student.master), tmp_path)
    before, after = (json.loads((each / "config.json").read_text()) for each in (student.master, tmp_path))
    assert after == before
    assert torch.equal(logits(native(tmp_path), batch(2)), logits(model, batch(2)))


@pytest.mark.parametrize("student", ["Llama", "Qwen3"], indirect=True)
def test_bfloat16_master_weights(student: Student, tmp_path: Path) -> None:
    folder = shutil.copytree(student.master, tmp_path / "half")
    half = native(student.master, dtype=torch.bfloat16)
    half.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert native(folder).dtype == torch.bfloat16
    reference = load_reference(folder)
    ids = reference.tokenize(PROMPT)
    with reference.threads():
        model = native(folder, dtype=torch.float32, attn_implementation="eager")
        found = logits(model, {"input_ids": torch.tensor([ids])})[0].numpy()
    np.testing.assert_array_equal(found, reference.logits(ids))
    convert(folder, tmp_path / "m.gguf", embed_type="f16")
    assert parity(folder, tmp_path / "m.gguf", [PROMPT]).passed
    assert load_causal_lm(folder).dtype == torch.float32


def old_save(student: Student, folder: Path) -> Path:
    """The student as earlier versions saved it: an instance of its base model, with two norms too many."""
    shutil.copytree(student.master, folder)
    (folder / MODELING_FILE.name).unlink(missing_ok=True)
    student.model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [type(student.model).__name__]
    assert "auto_map" not in config
    return folder


def content(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


def test_an_old_save_is_the_same_student(student: Student, tmp_path: Path) -> None:
    old = old_save(student, tmp_path / student.master.name)
    for folder, name in ((old, "old.gguf"), (student.master, "new.gguf")):
        convert(folder, tmp_path / name, embed_type="f16")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()
    reference, loaded = load_reference(old), load_causal_lm(old)
    assert parity(old, tmp_path / "old.gguf", [PROMPT]).passed
    assert torch.equal(logits(loaded, batch(2)), logits(student.model, batch(2)))
    ids = reference.tokenize(PROMPT)
    np.testing.assert_array_equal(reference.logits(ids), load_reference(student.master).logits(ids))

    export_packed(old, tmp_path / "packed")
    resave(old)
    for folder, new in ((old, student.master), (tmp_path / "packed", student.packed)):
        assert {path.name for path in folder.iterdir()} == {path.name for path in new.iterdir()}
        for path in new.iterdir():
            assert content(folder / path.name) == content(path), path.name
    resave(old)  # nothing is left to do
    assert content(old / "config.json") == content(student.master / "config.json")


@pytest.mark.parametrize("student", WITH_CODE, indirect=True)
def test_without_its_code_a_student_is_refused(student: Student) -> None:
    """AutoModelForCausalLM must not fall back to the base model, which has no norms."""
    for path in (student.master, student.packed):
        with pytest.raises(ValueError, match="contains custom code which must be executed"):
            AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
    config = json.loads((student.master / "config.json").read_text())
    del config["auto_map"]
    with pytest.raises(ValueError, match=f"Unrecognized model identifier: {student.case.model_type}"):
        AutoConfig.for_model(**config)


@pytest.mark.parametrize("student", ["Qwen3"], indirect=True)
def test_a_missing_norm_is_an_error(student: Student, tmp_path: Path) -> None:
    folder = shutil.copytree(student.master, tmp_path / "less")
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "_sub_norm" in name]:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="attn_sub_norm"):
        convert(folder, tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="attn_sub_norm"):
        load_causal_lm(folder)


@pytest.mark.parametrize("student", ["Llama", "HunYuan"], indirect=True)
def test_doctor_and_eval_accept_a_student(student: Student) -> None:
    report = doctor(student.master)
    # after one step the model knows no text, but nothing is wrong with the checkpoint
    assert report.verdict.name == "undertrained", report.verdict
    columns = evaluate(student.master, text=PROMPT * 8).columns
    assert [column.name for column in columns] == ["student-python", "student-c++"]
    python, cpp = (column.text.perplexity for column in columns if column.text is not None)
    assert cpp == pytest.approx(python, rel=1e-2)


@pytest.mark.parametrize("student", ["Qwen3"], indirect=True)
def test_transformers_saves_the_code_again(student: Student, tmp_path: Path) -> None:
    """Somebody who fine-tunes a student without bitexport leaves a folder that both can read."""
    model = native(student.master)
    model.save_pretrained(tmp_path)
    for path in student.master.glob("token*"):
        shutil.copy(path, tmp_path)
    assert torch.equal(logits(native(tmp_path), batch(2)), logits(model, batch(2)))
    convert(tmp_path, tmp_path / "m.gguf", embed_type="f16")
    assert parity(tmp_path, tmp_path / "m.gguf", [PROMPT]).passed


def test_the_file_needs_torch_and_transformers_only() -> None:
    tree = ast.parse(MODELING_FILE.read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "transformers"}


def test_every_base_has_its_classes() -> None:
    for architecture in STUDENTS:
        name = architecture.replace("ForCausalLM", "SubLNForCausalLM")
        assert issubclass(getattr(modeling_subln, name), getattr(transformers, architecture))
