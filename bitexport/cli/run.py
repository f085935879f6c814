"""``bitexport run``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitexport.cli import options
from bitexport.cli.hub import Revision, local_path
from bitexport.cli.output import Output, counted, until_reader_leaves
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.blocks import BlockRule
    from bitexport.runtime.completion import Completion
    from bitexport.runtime.generation import ChosenToken, TokenProbability

# Alternatives of a token in one line of the table, so that it fits 80 columns.
_SHOWN = 3


def run(
    gguf: options.Gguf,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="The text to continue; - reads stdin.", show_default=False
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Continue the text in this file.", show_default=False
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "--n-predict", "-n", min=1, help="Maximum number of tokens to generate."
        ),
    ] = 256,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.0,
    repeat_penalty: options.RepeatPenalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    json_schema: options.JsonSchema = None,
    grammar: options.Grammar = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            min=0,
            max=100,
            help="Show each token's log-probability, the model's own before sampling options, and this many "
            "most likely tokens in its place.",
            show_default=False,
        ),
    ] = None,
    ctx: options.Context = 0,
    threads: options.Threads = 0,
    draft: options.Draft = None,
    draft_tokens: options.DraftTokens = 15,
    workers: options.Workers = "",
    layers: options.Layers = "",
    decode: Annotated[
        str,
        typer.Option(
            "--decode",
            metavar="HOW",
            help="plain: token by token; block: with a model of block diffusion; "
            "auto: what the file is made for.",
        ),
    ] = "auto",
    rule: Annotated[
        str | None,
        typer.Option(
            "--rule",
            metavar="RULE",
            help="Tokens of a block to settle in one pass: greedy (one), confidence (all above the "
            "threshold; the default), adaptive (the same, with a threshold that falls).",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0,
            max=1,
            help="Probability above which a token of a block is settled; 0.9 by default.",
            show_default=False,
        ),
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before the continuation.")] = False,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Generate text: continue a prompt, token by token or in blocks."""
    text = _prompt(prompt, file)
    from bitexport.runtime.completion import Completion, check_decode

    out = Output(json=json, quiet=quiet)
    # before a download, so that a mistake in an option is found first
    sampling = options.sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed, json_schema, grammar)
    check_decode(decode)
    block_rule = _rule(rule, threshold)
    gguf = local_path(out, gguf, "gguf", revision)
    completion = Completion(
        gguf,
        text,
        sampling=sampling,
        max_tokens=max_tokens,
        n_ctx=ctx,
        threads=threads,
        stop=stop or (),
        workers=workers,
        layers=options.layers(layers),
        draft=options.draft(out, draft),
        draft_tokens=draft_tokens,
        logprobs=logprobs,
        decode=decode,
        rule=block_rule,
    )
    if completion.max_tokens < max_tokens:
        out.warn(f"the context has room for {completion.max_tokens} tokens instead of {max_tokens}")
    pieces = []
    with until_reader_leaves():
        if echo:
            out.stream(text)
        try:
            for piece in completion:
                pieces.append(piece)
                out.stream(piece)
        finally:
            out.stream("\n")  # also after Ctrl-C
        _report(out, gguf, text, "".join(pieces), completion, logprobs, draft)


def _rule(name: str | None, threshold: float | None) -> BlockRule | None:
    if name is None and threshold is None:
        return None
    from bitexport.blocks.rules import rule_of

    return rule_of(name, threshold)


def _prompt(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        found = "both --prompt and --file are" if prompt is not None else "no prompt is"
        raise UsageError(f"{found} given; give one of --prompt TEXT, --prompt - (stdin) and --file FILE")
    if file is not None:
        return options.read_text(file, "--file") or ""
    if prompt == "-":
        try:
            return sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"--prompt -: stdin is not UTF-8 ({error.reason}); give UTF-8 text") from error
    return prompt or ""


def _report(
    out: Output,
    gguf: Path,
    prompt: str,
    text: str,
    completion: Completion,
    logprobs: int | None,
    draft: str | None,
) -> None:
    rate = completion.tokens / completion.seconds
    document: dict[str, Any] = {
        "model": str(gguf),
        "prompt": prompt,
        "completion": text,
        "prompt_tokens": completion.prompt_tokens,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "layers": completion.layers,
        "load_seconds": completion.load_seconds,
        "seconds": completion.seconds,
        "tokens_per_second": rate,
        "passes": completion.passes,
    }
    if draft is not None:
        document["draft"] = {"source": draft, **asdict(completion.drafts)}
    if logprobs is not None:
        document["logprobs"] = [_token_json(each) for each in completion.probabilities]
    out.result(document, human=lambda: _show_logprobs(out, completion.probabilities, logprobs))
    out.info(
        f"{counted(completion.prompt_tokens, 'prompt token')}, {completion.tokens} generated in "
        f"{completion.seconds:.2f} s ({rate:.1f} t/s); loaded in {completion.load_seconds:.2f} s"
        + (f"; {_drafted(completion)}" if draft is not None else "")
        + (f", over {len(completion.layers)} machines" if completion.layers else "")
        + _passes(completion)
    )


def _drafted(completion: Completion) -> str:
    found = completion.drafts
    per_pass = completion.tokens / max(found.passes, 1)
    return f"{per_pass:.2f} tokens per pass, {found.accepted} of {found.drafted} drafted ones accepted"


def _passes(completion: Completion) -> str:
    if not completion.passes:
        return ""
    return f"; {completion.tokens / completion.passes:.2f} tokens per pass in {completion.passes} passes"


def _token_json(found: ChosenToken) -> dict[str, Any]:
    return {**_json(found.chosen), "top": [_json(each) for each in found.alternatives]}


def _json(found: TokenProbability) -> dict[str, Any]:
    return {"token": found.token, "text": found.text, "logprob": found.logprob}


def _show_logprobs(out: Output, tokens: list[ChosenToken], wanted: int | None) -> None:
    if wanted is None:
        return
    shown = min(wanted, _SHOWN)
    columns = ["", "token", "log p", *(["most likely, with log p"] if shown else [])]
    rows: list[list[object]] = []
    for number, found in enumerate(tokens, start=1):
        row: list[object] = [number, _short(found.chosen.text), f"{found.chosen.logprob:.4f}"]
        if shown:
            row.append("  ".join(f"{_short(a.text)} {a.logprob:.3f}" for a in found.alternatives[:shown]))
        rows.append(row)
    out.table(columns, rows, right=["", "log p"])
    if wanted > shown:
        out.wrapped(f"--json shows all {wanted} alternatives")


def _short(text: str) -> str:
    """A token as a Python string literal of at most 12 characters."""
    shown = repr(text)
    return shown if len(shown) <= 12 else f"{shown[:10]}…{shown[-1]}"
