"""``bitexport run``."""

from __future__ import annotations

from typing import Annotated

import typer

from bitexport.cli import options
from bitexport.cli.hub import Revision, local_path
from bitexport.cli.output import Output


def run(
    gguf: options.Gguf,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to continue.", show_default=False)
    ],
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, help="Maximum number of tokens to generate.")
    ] = 256,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature", min=0.0, help="Sampling temperature; 0 always chooses the most likely token."
        ),
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top-k", min=0, help="Sample from this many most likely tokens; 0 for all.")
    ] = 40,
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p", max=1.0, help="Sample from the most likely tokens up to this probability; 1 for all."
        ),
    ] = 0.95,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Random seed; the same seed gives the same text.")
    ] = 0,
    ctx: Annotated[
        int,
        typer.Option("--ctx", "-c", min=0, help="Context in tokens; 0 for the model's own, up to 4096."),
    ] = 0,
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="Number of threads; 0 for one per core.")
    ] = 0,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before the continuation.")] = False,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Generate text: continue a prompt, token by token."""
    from bitexport.runtime.completion import Completion, Sampling

    out = Output(json=json, quiet=quiet)
    gguf = local_path(out, gguf, "gguf", revision)
    completion = Completion(
        gguf,
        prompt,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        max_tokens=max_tokens,
        n_ctx=ctx,
        threads=threads,
    )
    if completion.max_tokens < max_tokens:
        out.warn(f"the context has room for {completion.max_tokens} tokens instead of {max_tokens}")
    if echo:
        out.stream(prompt)
    pieces = []
    try:
        for piece in completion:
            pieces.append(piece)
            out.stream(piece)
    finally:
        out.stream("\n")  # also after Ctrl-C
    rate = completion.tokens / completion.seconds
    document = {
        "model": str(gguf),
        "prompt": prompt,
        "completion": "".join(pieces),
        "prompt_tokens": completion.prompt_tokens,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "load_seconds": completion.load_seconds,
        "seconds": completion.seconds,
        "tokens_per_second": rate,
    }
    out.result(document)
    out.info(
        f"{completion.prompt_tokens} prompt tokens, {completion.tokens} generated in "
        f"{completion.seconds:.2f} s ({rate:.1f} t/s); loaded in {completion.load_seconds:.2f} s"
    )
