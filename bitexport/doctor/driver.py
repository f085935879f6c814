"""Runs a checkpoint at every degree of quantization, then its GGUF file, and asks the decision tree."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.checkpoint.float_model import refuse_full_precision
from bitexport.convert import convert
from bitexport.convert.plan import make_plan
from bitexport.doctor.agreement import logit_difference, tokenizer_difference
from bitexport.doctor.examination import examine
from bitexport.doctor.free_sampling import sample_freely
from bitexport.doctor.fresh import compare_with_fresh
from bitexport.doctor.metadata import decoding_difference
from bitexport.doctor.report import DoctorReport
from bitexport.doctor.samples import make_samples
from bitexport.doctor.stages import (
    STAGES,
    end_tokens,
    has_master_weights,
    measure,
    quantizes_activations,
    running_as,
)
from bitexport.doctor.verdicts import Facts, decide
from bitexport.errors import BitexportError, OutputError, TokenizerError, UnsupportedError, UsageError
from bitexport.families import check_runs, is_headless
from bitexport.gguf.reader import read_gguf
from bitexport.health.scan import scan_checkpoint
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference, load_reference
from bitexport.runtime.session import Session

#: Signs of tensors with which no model can run.
UNUSABLE = ("not-finite", "bad-scale", "unreadable")

STEPS = 9


def doctor(
    checkpoint: str | Path,
    gguf: str | Path | None = None,
    *,
    prompt: str | None = None,
    text: str | None = None,
    threads: int = 0,
    progress: Progress = ignore,
) -> DoctorReport:
    """Find out why a model prints garbage.

    Args:
        checkpoint: folder of the checkpoint.
        gguf: the file made from it; if None, a temporary one is made.
        prompt: the text whose next token is shown; if None, one that suits the text.
        text: a text that the model should be able to predict. If None, English prose and Python code are
            tried, and the one that the model predicts better counts.
        threads: for C++; 0 means one per processor.
        progress: called for every step.

    Raises:
        CheckpointError, TokenizerError, GGUFError, UnsupportedError: the model or the file cannot be read.
        OutputError: the temporary file cannot be written.
        UsageError: the text or the prompt is empty, the model has no head and so predicts no text, or the
            checkpoint is a float one.
    """
    source = open_checkpoint(checkpoint)
    if is_headless(source.config):
        raise UsageError(
            f"{checkpoint} is an embedding model ({source.config['architectures'][0]}), which predicts no "
            "text to judge; compare its vectors with `bitexport parity`, and see `bitexport inspect --health`"
        )
    refuse_full_precision(source)
    step = _Steps(progress)
    step("reading the tensors")
    facts = Facts(findings=scan_checkpoint(source))
    skipped: dict[str, str] = {}
    unusable = [f.message for f in facts.findings if f.name in UNUSABLE]
    if unusable:
        skipped = dict.fromkeys(STAGES, "the tensors cannot be used")
        return DoctorReport(str(source.path), _name(gguf), facts, decide(facts), skipped)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(gguf) if gguf is not None else _convert(source.path, Path(folder), facts, step)
        _examine(source, path, gguf is not None, facts, step)
        if path is not None:
            facts.decoding_difference = decoding_difference(source.config, read_gguf(path))
        step("loading")
        reference = load_reference(source.path, _architecture(path))
        facts.samples = make_samples(reference.tokenize, reference.n_vocab, reference.n_ctx, text, prompt)
        if _fits(reference, facts):
            _run_python(reference, facts, skipped, step)
            if path is not None:
                _run_cpp(reference, path, facts, threads, step)
        else:
            skipped = dict.fromkeys(STAGES, "the tokenizer produces ids that the model lacks")
    if path is None:
        skipped["c++"] = "convert refused the checkpoint"
    return DoctorReport(str(source.path), _name(gguf), facts, decide(facts), skipped)


def _convert(folder: Path, target: Path, facts: Facts, step: _Steps) -> Path | None:
    """Make a temporary GGUF file; if convert refuses, note the reason in ``facts`` and return None."""
    step("converting")
    try:
        _convert_temporarily(folder, target / "model.gguf")
    except OutputError:
        raise
    except TokenizerError as error:
        facts.tokenizer_difference = f"convert refuses: {error}"
        return None
    except BitexportError as error:
        facts.conversion_error = f"convert refuses: {error}"
        return None
    return target / "model.gguf"


def _convert_temporarily(folder: Path, file: Path) -> None:
    # float16 embeddings lose almost nothing, so C++ can be compared with PyTorch strictly
    try:
        convert(folder, file, embed_type="f16")
    except OutputError as error:  # says nothing about the checkpoint
        raise OutputError(
            f"doctor needs room for a temporary file: {error}; TMPDIR chooses another folder"
        ) from error


def _examine(source: Checkpoint, path: Path | None, given: bool, facts: Facts, step: _Steps) -> None:
    step("comparing the tensors")
    try:
        check_runs(source.config, source.tensors)
    except UnsupportedError:
        if given and path is not None:
            _compare_with_fresh(source, path, facts)
        return
    try:
        plan = make_plan(source, "auto", "f16")
    except BitexportError as error:
        facts.conversion_error = facts.conversion_error or f"convert refuses: {error}"
        return
    facts.examination = examine(plan, read_gguf(path) if path is not None else None)


def _compare_with_fresh(source: Checkpoint, path: Path, facts: Facts) -> None:
    """Compare the given file with one that convert makes of the checkpoint, which has no family."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "model.gguf"
        try:
            _convert_temporarily(source.path, fresh)
        except OutputError:
            raise
        except BitexportError as error:
            facts.conversion_error = f"convert refuses: {error}"
            return
        facts.examination = compare_with_fresh(read_gguf(path), read_gguf(fresh))


def _architecture(path: Path | None) -> str | None:
    return None if path is None else str(read_gguf(path).metadata.get("general.architecture"))


def _fits(reference: Reference, facts: Facts) -> bool:
    """Whether the model has an embedding for every id in the samples; if not, note it in ``facts``."""
    largest = max(
        max((*sample.prompt_ids, *(token for window in sample.windows for token in window)))
        for sample in facts.samples
    )
    if largest < reference.n_vocab:
        return True
    facts.tokenizer_difference = (
        f"the tokenizer produces id {largest}, but the model has {reference.n_vocab} embeddings"
    )
    return False


def _run_python(reference: Reference, facts: Facts, skipped: dict[str, str], step: _Steps) -> None:
    ends = end_tokens(reference)
    for name in ("float", "weights", "both"):
        step(STAGES[name])
        if name == "float" and not has_master_weights(reference):
            packed = quantizes_activations(reference)
            skipped[name] = f"{'a packed' if packed else 'a pre-dequantized'} checkpoint has no float weights"
            continue
        if name == "both" and not quantizes_activations(reference):
            skipped[name] = "activations were not quantized in training"
            continue
        with running_as(reference, name):
            facts.stages[name] = measure(name, reference, facts.samples, reference, ends)
    if not facts.predicts and facts.never_predicts:
        step("sampling freely")
        with running_as(reference, facts.least_quantized):
            facts.free_sampling = sample_freely(reference, ends)


def _run_cpp(reference: Reference, path: Path, facts: Facts, threads: int, step: _Steps) -> None:
    step(STAGES["c++"])
    longest = max(len(window) for sample in facts.samples for window in sample.windows)
    prompts = max(len(sample.prompt_ids) for sample in facts.samples)
    with Session(path, n_ctx=max(longest, prompts), n_threads=threads) as session:
        facts.tokenizer_difference = facts.tokenizer_difference or tokenizer_difference(
            reference, session, facts.samples
        )
        if session.n_vocab != reference.n_vocab:
            facts.logit_difference = (
                f"the file has {session.n_vocab} tokens, the model has {reference.n_vocab}"
            )
            return
        facts.stages["c++"] = measure("c++", session, facts.samples, reference, end_tokens(reference))
        step("comparing the logits")
        facts.logit_difference = logit_difference(reference, session, facts.samples)


class _Steps:
    """Progress in steps, which take different amounts of time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def __call__(self, label: str) -> None:
        self._progress(ProgressEvent(min(self._done, STEPS), STEPS, "steps", label))
        self._done += 1


def _name(gguf: str | Path | None) -> str | None:
    return None if gguf is None else str(gguf)
