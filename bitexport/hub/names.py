"""Decides whether an argument is a path or the name of a model on the hub."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from bitexport.checkpoint.folders import PARTS

#: ``OWNER/REPO``, then perhaps ``@REVISION`` and ``:FILE``.
_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})(?:@(?P<revision>[^:]+))?(?::(?P<file>.+))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubName:
    """The name of a model on the hub.

    Attributes:
        repo: ``OWNER/REPO``.
        revision: a branch, tag or commit; None for the main branch.
        file: the path of a file in the repository; None if it was not named.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f":{self.file}" if self.file else "")

    def download_command(self, *patterns: str) -> str:
        """The ``hf`` command that downloads the named file, or what ``patterns`` say, into a folder."""
        words = ["hf", "download", self.repo]
        if self.revision:
            words += ["--revision", self.revision]
        words += [self.file] if self.file else patterns
        return shlex.join([*words, "--local-dir", self.folder])

    @property
    def folder(self) -> str:
        """The folder of :meth:`download_command`."""
        return self.repo.rpartition("/")[2]


def hub_name(text: str | os.PathLike[str]) -> HubName | None:
    """The model on the hub that an argument names; None if it is a path.

    An existing file or folder is always a path, and so is a name with the suffix of a model's file: nobody
    names a repository ``out.gguf``.
    """
    name = os.fspath(text)
    found = _NAME.fullmatch(name)
    if found is None or os.path.lexists(name):
        return None
    repo = found["repo"]
    if ".." in repo or "--" in repo or repo.endswith((".", "-")):
        return None
    if not (found["file"] or found["revision"]) and Path(repo).suffix in {".gguf", *PARTS}:
        return None
    return HubName(repo, found["revision"], found["file"])
