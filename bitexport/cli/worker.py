"""``bitexport worker``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from bitexport.cli import options
from bitexport.cli.output import Output, counted, format_bytes

if TYPE_CHECKING:
    from bitexport.worker import Event, Worker


def worker(
    host: Annotated[
        str,
        typer.Option(
            "--host", help="IPv4 address of this machine to listen on; only trusted machines may reach it."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 for any free one.")
    ] = 50052,
    threads: options.Threads = 0,
    memory: Annotated[
        float,
        typer.Option(
            "--memory", metavar="GIB", min=0, help="Memory to lend, in GiB; 0: 90% of what is free."
        ),
    ] = 0,
    allow_public: Annotated[
        bool,
        typer.Option(
            "--allow-public",
            help="Listen also where other networks reach it. Whoever does controls the worker's process.",
        ),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compute some layers of a model for another machine, which is given --workers HOST:PORT."""
    from bitexport.worker import worker as run

    out = Output(json=json, quiet=quiet)
    run(
        host=host,
        port=port,
        threads=threads,
        memory_gib=memory,
        allow_public=allow_public,
        on_ready=lambda started: _show_ready(out, started),
        on_event=lambda event: _show_event(out, event),
    )
    out.info("stopped")


def _show_ready(out: Output, worker: Worker) -> None:
    from bitexport.runtime.remote import identity

    document = {
        "address": worker.address,
        "host": worker.host,
        "port": worker.port,
        "threads": worker.threads,
        "memory_bytes": worker.memory_bytes,
        "tier": worker.tier,
        "version": identity(),
    }
    out.info(
        f"{identity()}: {counted(worker.threads, 'thread')}, {format_bytes(worker.memory_bytes)} of memory, "
        f"{worker.tier} kernels; Ctrl-C stops"
    )
    # last, because a program may connect as soon as it has read this
    out.result(document, human=lambda: print(worker.address, flush=True), awaited=True)


def _show_event(out: Output, event: Event) -> None:
    line = f"{time.strftime('%H:%M:%S')} {event.client} {event.kind}"
    if event.kind == "dropped":
        out.warn(f"{line}: the worker {event.reason}")
    else:
        out.info(f"{line}: {event.reason}" if event.reason else line)
