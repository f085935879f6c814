"""Runs a checkpoint at every degree of quantization and its GGUF file, and asks the decision tree."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bitexport.checkpoint import Checkpoint, open_checkpoint
from bitexport.convert import convert
from bitexport.convert.plan import make_plan
from bitexport.doctor.agreement import logit_difference, tokenizer_difference
from bitexport.doctor.examination import examine
from bitexport.doctor.free_sampling import sample_freely
from bitexport.doctor.report import DoctorReport
from bitexport.doctor.samples import make_samples
from bitexport.doctor.stages import STAGES, end_tokens, has_master_weights, measure, running_as
from bitexport.doctor.verdicts import Facts, decide
from bitexport.errors import BitexportError, TokenizerError
from bitexport.gguf.reader import read_gguf
from bitexport.health.scan import scan_checkpoint
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference import Reference, load_reference
from bitexport.runtime.model import Session

#: signs of tensors that no model can be run with.
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
        gguf: the file made of it; None makes one for the occasion.
        prompt: what the next token is shown for; one that fits the text when None.
        text: what the model should be able to predict, in its language; English prose and Python code when
            None, of which it is judged by what it predicts better.
        threads: for C++; 0 takes one a processor.
        progress: told of every step.

    Raises:
        CheckpointError, TokenizerError, GGUFError, UnsupportedError: what could not be read at all.
        UsageError: the text or the prompt is empty.
    """
    source = open_checkpoint(checkpoint)
    say = _Steps(progress)
    say("reading the tensors")
    facts = Facts(findings=scan_checkpoint(source))
    skipped: dict[str, str] = {}
    unusable = [f.message for f in facts.findings if f.name in UNUSABLE]
    if unusable:
        skipped = dict.fromkeys(STAGES, "the tensors cannot be used")
        return DoctorReport(str(source.path), _name(gguf), facts, decide(facts), skipped)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(gguf) if gguf is not None else _converted(source.path, Path(folder), facts, say)
        _examine(source, path, facts, say)
        say("loading")
        reference = load_reference(source.path)
        facts.samples = make_samples(reference.tokenize, reference.n_vocab, reference.n_ctx, text, prompt)
        if _fits(reference, facts):
            _run_python(reference, facts, skipped, say)
            if path is not None:
                _run_cpp(reference, path, facts, threads, say)
        else:
            skipped = dict.fromkeys(STAGES, "the tokenizer gives ids that the model lacks")
    if path is None:
        skipped["c++"] = "convert refused the checkpoint"
    return DoctorReport(str(source.path), _name(gguf), facts, decide(facts), skipped)


def _converted(folder: Path, target: Path, facts: Facts, say: _Steps) -> Path | None:
    """A file made for the occasion; None, with the reason among the facts, where that is refused."""
    say("converting")
    try:
        # float16 embeddings cost next to nothing, so that C++ can be held to PyTorch
        convert(folder, target / "model.gguf", embed_type="f16")
    except TokenizerError as error:
        facts.tokenizer_difference = f"convert refuses: {error}"
        return None
    except BitexportError as error:
        facts.conversion_error = f"convert refuses: {error}"
        return None
    return target / "model.gguf"


def _examine(source: Checkpoint, path: Path | None, facts: Facts, say: _Steps) -> None:
    say("comparing the tensors")
    try:
        plan = make_plan(source, "f16", "f16")
    except BitexportError as error:
        facts.conversion_error = facts.conversion_error or f"convert refuses: {error}"
        return
    facts.examination = examine(plan, read_gguf(path) if path is not None else None)


def _fits(reference: Reference, facts: Facts) -> bool:
    """Whether all ids of the samples are the model's; otherwise that is a fact."""
    largest = max(
        max((*sample.prompt_ids, *(token for window in sample.windows for token in window)))
        for sample in facts.samples
    )
    if largest < reference.n_vocab:
        return True
    facts.tokenizer_difference = (
        f"the tokenizer gives id {largest}, the model has {reference.n_vocab} embeddings"
    )
    return False


def _run_python(reference: Reference, facts: Facts, skipped: dict[str, str], say: _Steps) -> None:
    ends = end_tokens(reference)
    for name in ("float", "weights", "both"):
        say(STAGES[name])
        if name == "float" and not has_master_weights(reference):
            skipped[name] = "a packed checkpoint has no float weights"
            continue
        with running_as(reference, name):
            facts.stages[name] = measure(name, reference, facts.samples, reference, ends)
    if not facts.predicts and facts.never_predicts:
        say("listening to what it makes up")
        with running_as(reference, facts.least_quantized):
            facts.free_sampling = sample_freely(reference, ends)


def _run_cpp(reference: Reference, path: Path, facts: Facts, threads: int, say: _Steps) -> None:
    say(STAGES["c++"])
    longest = max(len(window) for sample in facts.samples for window in sample.windows)
    prompts = max(len(sample.prompt_ids) for sample in facts.samples)
    with Session(path, n_ctx=max(longest, prompts), n_threads=threads) as session:
        facts.tokenizer_difference = facts.tokenizer_difference or tokenizer_difference(
            reference, session, facts.samples
        )
        if session.n_vocab != reference.n_vocab:
            facts.logit_difference = f"the file has {session.n_vocab} tokens, the model {reference.n_vocab}"
            return
        facts.stages["c++"] = measure("c++", session, facts.samples, reference, end_tokens(reference))
        say("comparing the logits")
        facts.logit_difference = logit_difference(reference, session, facts.samples)


class _Steps:
    """Progress in steps of unlike length."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def __call__(self, label: str) -> None:
        self._progress(ProgressEvent(min(self._done, STEPS), STEPS, "steps", label))
        self._done += 1


def _name(gguf: str | Path | None) -> str | None:
    return None if gguf is None else str(gguf)
