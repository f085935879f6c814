"""The student in examples/en-fr, from checkpoint to translation: small, exact, and useful."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers

import bitexport
from bitexport.convert import convert
from bitexport.doctor import doctor
from bitexport.parity import parity
from bitexport.reference import load_reference
from bitexport.reference.model import eager, torch_threads
from tests.support.decoding import greedy
from tests.support.repository import EN_FR

CHECKPOINT = EN_FR
# Sentences of our own in the style of program messages, and a word that the translation must contain.
SENTENCES = {
    "The file could not be opened.": "fichier",
    "Show all files in this folder": "fichiers",
    "invalid number of arguments": "arguments",
    "Unable to write the password": "mot de passe",
    "Print the version and exit": "version",
    "The user does not exist": "utilisateur",
}


def prompt_of(sentence: str) -> str:
    return f"<|en|>{sentence}<|fr|>"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("en-fr") / "student.gguf"
    convert(CHECKPOINT, path)
    return path


def test_it_is_small_and_has_a_model_card() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*")) <= 8_000_000
    assert {"README.md", "teacher.toml", "student.toml", "loss.png"} <= {p.name for p in CHECKPOINT.iterdir()}


def test_cpp_computes_what_pytorch_computes(gguf: Path) -> None:
    report = parity(CHECKPOINT, gguf, prompts=[prompt_of(sentence) for sentence in SENTENCES], tokens=16)
    assert report.passed
    assert report.aligned is not None
    assert report.aligned.agreement.cosine_min >= 0.9999
    assert report.aligned.unexplained == 0


def test_both_sides_translate_in_the_same_way(gguf: Path) -> None:
    """Greedy decoding, in C++ through llama-cpp-python as users do, and in PyTorch."""
    reference = load_reference(CHECKPOINT)
    end = reference.tokenizer.eos_token_id
    llama = bitexport.load(gguf, n_ctx=128, verbose=False)
    same = right = 0
    for sentence, word in SENTENCES.items():
        prompt = prompt_of(sentence)
        ids = greedy(reference, reference.tokenize(prompt), 40)
        python = reference.text(ids[: ids.index(end)] if end in ids else ids)
        ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
        cpp = llama.create_completion(ids, max_tokens=40, temperature=0.0)["choices"][0]["text"]
        same += cpp.strip() == python.strip()
        right += word in cpp
    assert same >= len(SENTENCES) - 1, "at most one near tie"
    assert right >= len(SENTENCES) - 2
    llama.close()


def test_transformers_alone_translates_in_the_same_way(gguf: Path) -> None:
    """As anybody loads it, without bitexport and without code from the folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    llama = bitexport.load(gguf, n_ctx=128, verbose=False)
    same = 0
    with eager(), torch_threads(1):  # compiling takes a minute, and threads of so small a model wait
        model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, trust_remote_code=False)
        assert type(model) is transformers.BitNetForCausalLM
        for prompt in map(prompt_of, SENTENCES):
            inputs = tokenizer(prompt, return_tensors="pt")
            written = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0]
            text = tokenizer.decode(written[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            completion = llama.create_completion(prompt, max_tokens=40, temperature=0.0)
            same += completion["choices"][0]["text"].strip() == text.strip()
    assert same >= len(SENTENCES) - 1, "at most one near tie"
    llama.close()


def test_the_student_of_earlier_versions_is_the_same(gguf: Path, tmp_path: Path) -> None:
    """It was saved as a Llama, with norms that transformers drops."""
    old = tmp_path / CHECKPOINT.name
    shutil.copytree(CHECKPOINT, old)
    config = json.loads((old / "config.json").read_text())
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": 64,
        "mlp_bias": False,
    }
    (old / "config.json").write_text(json.dumps(config))
    convert(old, tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == gguf.read_bytes()


def test_doctor_does_not_blame_the_tokenizer(gguf: Path) -> None:
    """Trained on answers only, it predicts no prose, and sampling freely it writes runs of spaces."""
    report = doctor(CHECKPOINT, gguf)
    assert report.verdict.name == "unfamiliar-text"
    assert "bitexport eval --pairs" in report.verdict.advice
    sampled = report.facts.free_sampling
    assert sampled is not None
    assert sampled.kept > 0.85
    assert sampled.kept_shuffled < 0.75
