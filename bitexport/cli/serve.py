"""``bitexport serve``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bitexport.cli import options
from bitexport.cli.hub import Revision, local_path
from bitexport.cli.output import Output

if TYPE_CHECKING:
    from bitexport.serve import RequestRecord, Server, Summary

# As in ``bitexport.gguf.embedding_settings``, which is not imported here so that --help is fast.
Pooling = Literal["mean", "cls", "last"]

KEY_VARIABLE = "BITEXPORT_API_KEY"

# The page's files and what monitors ask for are not worth a line each.
_SILENT_PATHS = (
    "/",
    "/index.html",
    "/chat.css",
    "/chat.js",
    "/favicon.ico",
    "/health",
    "/v1/health",
    "/metrics",
)


def serve(
    gguf: options.Gguf,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than 127.0.0.1 need a key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 for any free one.")
    ] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help=f"Key that clients must send. Better: set {KEY_VARIABLE}, which nobody else can read.",
            show_default=False,
        ),
    ] = None,
    slots: Annotated[
        int, typer.Option("--slots", min=1, max=256, help="Requests that compute at the same time.")
    ] = 4,
    ctx: Annotated[
        int,
        typer.Option(
            "--ctx", "-c", min=0, help="Context of each slot in tokens; 0 for the model's own, up to 4096."
        ),
    ] = 0,
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="Number of threads; 0 for one per core.")
    ] = 0,
    workers: options.Workers = "",
    layers: options.Layers = "",
    draft: options.Draft = None,
    draft_tokens: options.DraftTokens = 15,
    cache: Annotated[
        int,
        typer.Option("--cache", metavar="MIB", min=0, help="Memory for prompts of earlier requests, in MiB."),
    ] = 512,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Serve embeddings; automatic for an embedding model.")
    ] = False,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            "--pooling",
            case_sensitive=False,
            help="Serve embeddings with this pooling. Default: as the file says.",
            show_default=False,
        ),
    ] = None,
    max_prompt: Annotated[
        int, typer.Option("--max-prompt", min=0, help="Most tokens of a prompt; 0: what the context holds.")
    ] = 0,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens",
            "-n",
            min=0,
            help="Most tokens generated for a request; 0: what the context holds.",
        ),
    ] = 0,
    timeout: Annotated[
        int, typer.Option("--timeout", metavar="SECONDS", min=0, help="Most time for a request; 0: no limit.")
    ] = 600,
    queue: Annotated[
        int, typer.Option("--queue", min=0, help="Requests that wait for a slot; more are refused.")
    ] = 64,
    max_body: Annotated[
        int, typer.Option("--max-body", metavar="MIB", min=1, max=1024, help="Largest request, in MiB.")
    ] = 8,
    stop_timeout: Annotated[
        int,
        typer.Option(
            "--stop-timeout",
            metavar="SECONDS",
            min=0,
            help="Time for requests in progress when the server is stopped.",
        ),
    ] = 30,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Serve a model over HTTP: OpenAI's API at /v1, and a page to chat with."""
    from bitexport.serve import Limits
    from bitexport.serve import serve as run

    out = Output(json=json, quiet=quiet)
    key = _key(out, api_key)
    summary = run(
        local_path(out, gguf, "gguf", revision),
        host=host,
        port=port,
        api_key=key,
        slots=slots,
        ctx=ctx,
        threads=threads,
        workers=workers,
        layers=options.layers(layers),
        draft=options.draft(out, draft),
        draft_tokens=draft_tokens,
        cache_mib=cache,
        embeddings=embeddings,
        pooling=pooling,
        limits=Limits(
            prompt_tokens=max_prompt,
            max_tokens=max_tokens,
            body_bytes=max_body * 1024 * 1024,
            seconds=timeout,
            queue=queue,
            stop_seconds=stop_timeout,
        ),
        on_ready=lambda server: _show_ready(out, server),
        on_request=lambda request: _show_request(out, request),
    )
    _show_end(out, summary)


def _key(out: Output, given: str | None) -> str | None:
    """The key from the option or the variable. The option's is removed from what ``ps`` shows."""
    from bitexport.system.arguments import hide_argument

    if given is None:
        return os.environ.get(KEY_VARIABLE)
    if not hide_argument(given):
        out.warn(
            f"other users of this machine can see the key among the processes; set {KEY_VARIABLE} instead"
        )
    return given


def _show_ready(out: Output, server: Server) -> None:
    plan = server.plan
    document = {
        "url": server.url,
        "port": server.port,
        "pid": server.pid,
        "model": str(plan.file),
        "tier": server.tier,
        "slots": plan.slots,
        "ctx": plan.ctx,
        "threads": plan.threads,
        "workers": plan.workers,
        "layers": plan.layers,
        "draft": None if plan.draft is None else str(plan.draft),
        "embeddings": plan.pooling is not None,
        "chat_template": plan.chats,
        "api_key": plan.api_key is not None,
    }
    threads = "1 thread" if plan.threads == 1 else f"{plan.threads} threads"
    slots = "1 slot" if plan.slots == 1 else f"{plan.slots} slots"
    out.info(
        f"{plan.file.name}: {slots} of {plan.ctx} tokens, {threads}, {server.tier} kernels; Ctrl-C stops"
    )
    if plan.workers:
        out.info(f"over {len(plan.layers)} machines, layers {','.join(map(str, plan.layers))}")
    if plan.draft is not None:
        source = "the text itself" if plan.draft == "lookup" else Path(plan.draft).name
        out.info(f"drafts of up to {plan.draft_tokens} tokens from {source}")
    if plan.pooling is not None:
        out.info(f"embeddings with pooling {plan.pooling} at {server.url}/v1/embeddings")
    elif not plan.chats:
        out.info("the file has no chat template: only /v1/completions, which continues a text")
    # last, because a program may send requests as soon as it has read this
    out.result(document, human=lambda: print(server.url, flush=True), awaited=True)


def _show_request(out: Output, request: RequestRecord) -> None:
    if request.status < 400 and request.path in _SILENT_PATHS:
        return
    parts = [time.strftime("%H:%M:%S"), request.client, request.method, request.path, str(request.status)]
    if request.prompt_tokens is not None:
        parts.append(f"{request.prompt_tokens} prompt tokens ({request.cached_tokens} cached),")
        parts.append(f"{request.tokens} generated,")
    parts.append(f"{request.seconds:.2f} s")
    if not request.complete:
        parts.append("(the client left)")
    out.info(" ".join(parts))


def _show_end(out: Output, summary: Summary) -> None:
    requests = "1 request" if summary.requests == 1 else f"{summary.requests} requests"
    out.info(f"stopped after {requests} and {summary.tokens} generated tokens")
    if summary.cut_off:
        out.warn(f"requests cut off because they took longer than --stop-timeout: {summary.cut_off}")
