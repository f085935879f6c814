"""Where a local copy came from: the hub's cache keeps each revision in a folder that names both.

``models--OWNER--REPO/snapshots/COMMIT`` is the layout of ``huggingface_hub``, whoever downloaded it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bitexport.hub.address import hub_url

_REPOSITORY = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository, and the commit that was downloaded."""

    repo: str
    commit: str

    @property
    def url(self) -> str:
        """The page of the repository."""
        return f"{hub_url()}/{self.repo}"


def source_of(path: str | Path) -> HubSource | None:
    """The repository and commit of a file or folder in the hub's cache; None for any other path."""
    place = Path(path).absolute()
    for folder in (place, *place.parents):
        if folder.parent.name != "snapshots" or not _COMMIT.fullmatch(folder.name):
            continue
        found = _REPOSITORY.fullmatch(folder.parent.parent.name)
        if found is not None:
            return HubSource(f"{found['owner']}/{found['name']}", folder.name)
    return None
