"""A good model, and one broken in each of the ways that doctor distinguishes."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch

from bitexport.convert import convert
from bitexport.doctor import VERDICTS, DoctorReport, doctor
from bitexport.doctor.verdicts import decide
from bitexport.system.native_files import library_file
from tests.support import trained
from tests.support.damaged_checkpoints import resaved
from tests.support.diffusion import as_block_diffusion
from tests.support.gguf_files import changed, double_scale, flip_one_trit, halve_gain
from tests.support.repository import REPOSITORY, TINY_PYTHON

SHIPPED = TINY_PYTHON
RunCli = Callable[..., CompletedProcess[str]]


def diagnose(folder: Path, text: Path | None, gguf: Path | None = None) -> DoctorReport:
    return doctor(folder, gguf, text=text.read_text(encoding="utf-8") if text else None)


def evidence(report: DoctorReport) -> str:
    return "\n".join(report.verdict.evidence)


def test_a_good_model(good: Path, good_gguf: Path, text: Path) -> None:
    for gguf in (None, good_gguf):
        report = diagnose(good, text, gguf)
        assert report.verdict.name == "healthy", report.verdict
        assert list(report.facts.stages) == ["float", "weights", "both", "c++"]
        assert report.facts.skill("both") > 0.5
        assert report.facts.skill("c++") == pytest.approx(report.facts.skill("both"), abs=0.01)
        assert report.facts.logit_difference is None


def test_the_shipped_model() -> None:
    report = doctor(SHIPPED)
    assert report.verdict.name == "healthy"
    assert report.skipped == {"float": "a packed checkpoint has no float weights"}
    assert report.sample is not None
    assert report.sample.kind == "code"


def test_trained_in_float(in_float: Path, text: Path) -> None:
    report = diagnose(in_float, text)
    assert report.verdict.name == "not-trained-with-quantization", report.verdict
    assert report.facts.skill("float") > 0.6
    assert report.facts.skill("both") < 0.75 * report.facts.skill("float")
    assert "of the Frobenius norm of 'model.layers." in evidence(report)


def test_an_untrained_model(untrained: Path, text: Path) -> None:
    report = diagnose(untrained, text)
    assert report.verdict.name == "undertrained"
    assert "even in float" in report.verdict.sentence
    assert report.facts.skill("float") < 0


def test_a_random_model_with_confident_predictions(checkpoint_of: Callable[..., Path], text: Path) -> None:
    """Random weights with large embeddings: every token predicts itself."""
    assert diagnose(checkpoint_of(), text).verdict.name == "undertrained"
    packed = diagnose(checkpoint_of("packed-divide"), text)
    assert packed.verdict.name == "undertrained"
    assert "its master weights would show which" in packed.verdict.sentence


def test_zeroed_mlps(good: Path, text: Path, tmp_path: Path) -> None:
    def zero(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if ".mlp." in name and name.endswith("proj.weight"):
                tensor.zero_()

    report = diagnose(resaved(good, tmp_path / "c", zero), text)
    assert report.verdict.name == "bad-tensors"
    assert "[all-zero]" in evidence(report)
    assert "c++" in report.facts.stages


def test_nan(good: Path, text: Path, tmp_path: Path) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")

    report = diagnose(resaved(good, tmp_path / "c", poison), text)
    assert report.verdict.name == "bad-tensors"
    assert "[not-finite]" in evidence(report)
    assert (report.facts.stages, len(report.skipped)) == ({}, 4)


def test_dead_rows_only_matter_in_a_bad_model(
    good: Path, untrained: Path, text: Path, tmp_path: Path
) -> None:
    def kill(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][0].zero_()

    assert diagnose(resaved(good, tmp_path / "good", kill), text).verdict.name == "healthy"
    assert diagnose(resaved(untrained, tmp_path / "bad", kill), text).verdict.name == "bad-tensors"


def test_the_tokenizer_of_another_model(good: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "c")
    trained.tokenizer(other=True).save(str(tmp_path / "c" / "tokenizer.json"))
    report = diagnose(tmp_path / "c", text)
    assert report.verdict.name == "tokenizer-mismatch"
    assert report.facts.free_sampling is not None
    assert report.facts.free_sampling.skill > 0.5
    assert "has learned a language, but with another tokenizer" in report.verdict.sentence


def test_a_text_of_another_kind(good: Path) -> None:
    report = diagnose(good, None)
    assert report.verdict.name == "unfamiliar-text"
    assert "--text" in report.verdict.advice


def test_a_tokenizer_with_more_ids_than_the_model(good: Path, text: Path, tmp_path: Path) -> None:
    from tests.support.tiny_models import tiny_tokenizer

    shutil.copytree(good, tmp_path / "c")
    tiny_tokenizer(480).save(str(tmp_path / "c" / "tokenizer.json"))
    report = diagnose(tmp_path / "c", text)
    assert report.verdict.name == "tokenizer-mismatch"
    assert "480 tokens, but 320 embeddings" in evidence(report)


def test_a_file_with_another_tokenizer(good: Path, text: Path, tmp_path: Path) -> None:
    from bitexport.convert import convert

    shutil.copytree(good, tmp_path / "c")
    trained.tokenizer(other=True).save(str(tmp_path / "c" / "tokenizer.json"))
    convert(tmp_path / "c", tmp_path / "x.gguf", embed_type="f16")
    report = diagnose(good, text, tmp_path / "x.gguf")
    assert report.verdict.name == "tokenizer-mismatch"
    assert "is tokenized differently" in evidence(report)


@pytest.mark.parametrize(
    ("tensor", "change", "words"),
    [
        (
            "blk.1.ffn_down.weight",
            double_scale,
            "blk.1.ffn_down.weight has scale .* 2 times the checkpoint's",
        ),
        ("blk.0.attn_q.weight", flip_one_trit, "blk.0.attn_q.weight differs in 1 of 16,384 trits"),
        ("blk.1.attn_norm.weight", halve_gain, "blk.1.attn_norm.weight differs: value 0 is off by 50.0%"),
    ],
)
def test_a_wrong_tensor(
    good: Path,
    good_gguf: Path,
    text: Path,
    tmp_path: Path,
    tensor: str,
    change: Callable[[bytearray, int, int], None],
    words: str,
) -> None:
    report = diagnose(good, text, changed(good_gguf, tmp_path / "x.gguf", tensor, change))
    assert re.search(words, "\n".join(report.facts.examination.differences))  # type: ignore[union-attr]
    assert report.verdict.name == "conversion", report.verdict
    assert re.search(words, evidence(report))


@pytest.mark.parametrize(
    ("key", "value"), [("rope.freq_base", 100.0), ("attention.layer_norm_rms_epsilon", 0.1)]
)
def test_a_wrong_hyperparameter(
    good: Path, good_gguf: Path, text: Path, tmp_path: Path, key: str, value: float
) -> None:
    content = bytearray(good_gguf.read_bytes())
    name = f"bitnet-b1.58.{key}".encode()
    struct.pack_into("<f", content, content.index(name) + len(name) + 4, value)
    (tmp_path / "x.gguf").write_bytes(content)
    report = diagnose(good, text, tmp_path / "x.gguf")
    assert report.verdict.name == "conversion"
    assert "does not match the checkpoint: 1 hyper-parameter differs" in report.verdict.sentence
    assert f"bitnet-b1.58.{key} is {value}" in evidence(report)


#: A preloaded library that overrides a function of ggml and scales every attention score by too much. This is
#: a real arithmetic fault: the file, the checkpoint and all of bitexport's code are untouched.
FAULT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
struct ggml_tensor;
typedef struct ggml_tensor *(*soft_max)(void *, struct ggml_tensor *, struct ggml_tensor *, float, float);
struct ggml_tensor *ggml_soft_max_ext(
    void *context, struct ggml_tensor *a, struct ggml_tensor *mask, float scale, float max_bias) {
    void *library = dlopen(getenv("FAULTY_GGML"), RTLD_NOW | RTLD_NOLOAD);
    soft_max real = (soft_max)dlsym(library, "ggml_soft_max_ext");
    return real(context, a, mask, 1.5f * scale, max_bias);
}
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs LD_PRELOAD and a compiler"
)
def test_a_faulty_kernel(good: Path, good_gguf: Path, text: Path, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "fault.c").write_text(FAULT)
    fault = tmp_path / "fault.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", fault, tmp_path / "fault.c", "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(fault), "FAULTY_GGML": str(library_file("ggml-base").resolve())}
    done = run_cli("doctor", good, good_gguf, "--text", text, "--json", env=environment)
    assert done.returncode == 3, done.stderr
    verdict = json.loads(done.stdout)["verdict"]
    assert verdict["name"] == "kernel", verdict
    assert "activations differ by more than rounding explains" in verdict["evidence"][1]


def test_a_tokenizer_that_convert_refuses(good: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "c")
    tokenizer = json.loads((tmp_path / "c" / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "c" / "tokenizer.json").write_text(json.dumps(tokenizer))
    report = diagnose(tmp_path / "c", text)
    assert report.verdict.name == "tokenizer-mismatch"
    assert "convert refuses: tokenizer.json normalizes text" in evidence(report)
    assert report.skipped == {"c++": "convert refused the checkpoint"}


def test_a_sound_model_that_convert_refuses(good: Path, good_gguf: Path, text: Path) -> None:
    facts = diagnose(good, text, good_gguf).facts
    facts.conversion_error = "convert refuses: the reason"
    verdict = decide(facts)
    assert (verdict.name, verdict.evidence[1]) == ("conversion", "convert refuses: the reason")


def test_every_verdict_has_its_section() -> None:
    guide = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", guide, flags=re.MULTILINE)[1:]
    by_name = {section.partition("\n")[0]: section for section in sections}
    for name in VERDICTS:
        section = by_name[name]
        assert "**Evidence.**" in section
        assert "**What to do.**" in section


def test_the_table_of_the_command_line(good: Path, good_gguf: Path, text: Path, run_cli: RunCli) -> None:
    done = run_cli("doctor", good, good_gguf, "--text", text, "--prompt", "The old river")
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "perplexity",
        "P(end of text)",
        "float",
        "weights",
        "both",
        "c++",
        "mlp.up_proj",
        "healthy: ",
    ):
        assert words in done.stdout
    assert "the next tokens are those after 'The old river'" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if "──" in line) <= 80


def test_the_json_document(untrained: Path, text: Path, run_cli: RunCli) -> None:
    done = run_cli("doctor", untrained, "--text", text, "--json")
    assert done.returncode == 3
    assert (
        done.stderr
        == "failed: undertrained: The model does not predict text even in float: it has not learned enough.\n"
    )
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert [stage["stage"] for stage in document["stages"]] == ["float", "weights", "both", "c++"]
    assert len(document["stages"][0]["top"]) == 5
    assert document["verdict"]["see"] == "docs/troubleshooting.md#undertrained"
    assert {"before", "after", "ratio"} <= document["norms"][0].keys()


def test_empty_text_empty_prompt_and_missing_files(good: Path, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert run_cli("doctor", good, "--text", tmp_path / "empty.txt").returncode == 2
    assert run_cli("doctor", good, "--prompt", "").returncode == 2
    assert run_cli("doctor", good, "--text", tmp_path / "none.txt").returncode == 2
    assert run_cli("doctor", tmp_path).returncode == 1


def test_weights_are_the_same_after_every_stage(good: Path) -> None:
    """The stages change what layers compute, but only within their block."""
    from bitexport.doctor.stages import running_as
    from bitexport.reference import load_reference

    reference = load_reference(good)
    ids = [5, 6, 7, 8]
    before = reference.logits(ids)
    seen = [before]
    for stage in ("float", "weights"):
        with running_as(reference, stage):
            seen.append(reference.logits(ids))
    assert np.array_equal(reference.logits(ids), before)
    assert all(not np.array_equal(seen[i], seen[j]) for i in range(3) for j in range(i))


def test_a_file_that_would_be_decoded_in_another_way(
    good: Path, good_gguf: Path, text: Path, tmp_path: Path
) -> None:
    """A checkpoint of block diffusion whose file says nothing of it, and the reverse."""
    in_blocks = as_block_diffusion(good, tmp_path / "c", mask_token_id=3)
    report = diagnose(in_blocks, text, good_gguf)
    assert report.verdict.name == "conversion"
    assert "so it is decoded as a plain model, token by token: convert the checkpoint again" in evidence(
        report
    )
    made = tmp_path / "c.gguf"
    convert(in_blocks, made, embed_type="f16")
    report = diagnose(good, text, made)
    assert report.verdict.name == "conversion"
    assert "decoded in blocks, which the model was not trained for" in evidence(report)
    assert diagnose(in_blocks, text, made).verdict.name == "healthy"
