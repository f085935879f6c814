"""Models on the hub as arguments: ``OWNER/REPO`` wherever a command takes a folder or a file.

A command declares its arguments with ``parser=path_or_name``, and ``revision: Revision = None``. It opens
what :func:`local_path` returns::

    gguf = local_path(out, gguf, "gguf", revision)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from bitexport.cli.interrupt import terminable
from bitexport.cli.output import Output
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.hub import Want

Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REV",
        help="Branch, tag or commit of the model, if it is named OWNER/REPO. Default: main.",
        show_default=False,
    ),
]

#: The end of the help of an argument that may name a model.
OR_NAME = "or OWNER/REPO on the Hugging Face hub"
OR_FILE_NAME = "or OWNER/REPO[:FILE.gguf] on the Hugging Face hub"

P = TypeVar("P", Path, "Path | None")


def path_or_name(text: str) -> Path:
    """The value of an argument that is a path or a name.

    ``Path`` makes ``acme/tiny`` of ``./acme/tiny`` and ``acme/tiny/``, which nobody writes who means a name.
    So those become absolute, unless they exist.
    """
    found = Path(text)
    return found if str(found) == text or _exists(found) else found.absolute()


def local_path(out: Output, path: P, want: Want, revision: str | None = None) -> P:
    """The path of an argument that is a path, or names a model on the hub, which is downloaded first.

    Args:
        out: shows a progress bar, unless it is quiet.
        path: a path, or ``OWNER/REPO[@REVISION][:FILE.gguf]``. What exists is a path. None stays None.
        want: what the command can use.
        revision: the value of ``--revision``, for a command's first argument.

    Raises:
        HubError: see :func:`bitexport.hub.fetch`.
        UsageError: ``revision`` is given, but ``path`` is a path or already names a revision.
    """
    if path is None or (revision is None and _exists(path)):
        return path  # at once: nothing is imported
    from dataclasses import replace

    from bitexport.hub import fetch, hub_name

    name = hub_name(path)
    if revision is not None:
        if name is None:
            raise UsageError(
                f"--revision is for a model named OWNER/REPO, but {path} is a path; leave it out"
            )
        if name.revision is not None:
            raise UsageError(f"{path} names a revision, and so does --revision {revision}; give one of them")
        name = replace(name, revision=revision)
    if name is None:
        return path  # it does not exist, which the command says in its own words
    with terminable(), out.progress(f"downloading {name.repo}") as progress:
        return fetch(name, want, progress)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # such as a name that is too long: the command says what is wrong with it
