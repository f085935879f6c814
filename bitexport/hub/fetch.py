"""Downloads the files of a model that a command needs into the hub's cache, or finds them there."""

from __future__ import annotations

import glob
import io
import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bitexport.errors import BitexportWarning, HubError, UsageError
from bitexport.hub.address import hub_url, without_secrets
from bitexport.hub.contents import FIRST, Want, select
from bitexport.hub.failures import explain, is_unreachable, not_cached, short
from bitexport.hub.names import HubName, hub_name
from bitexport.progress import Progress, ProgressEvent, ignore

if TYPE_CHECKING:
    from huggingface_hub import ResolvedRevision

#: Pauses before another try, in seconds, if the hub is overloaded.
_PAUSES = (1.0, 3.0)
_OVERLOADED = (429, 500, 502, 503, 504)


def fetch(name: HubName | str, want: Want = "model", progress: Progress = ignore) -> Path:
    """The local path of a model on the hub, downloaded if it is not in the cache yet.

    The files that exist are listed once per commit. A complete file is never downloaded again. If the hub
    cannot be reached, the newest revision in the cache is used, with a warning.

    Args:
        name: the model, and perhaps a file and a revision: ``OWNER/REPO[@REVISION][:FILE.gguf]``.
        want: what the caller can use, which decides what is downloaded.
        progress: called with the downloaded bytes of all files together.

    Returns:
        The checkpoint's folder, or the GGUF file: of a split model, the first part.

    Raises:
        HubError: there is no such model or revision, access is denied, the hub cannot be reached, the disk
            is full, or the repository has nothing that ``want`` allows.
        UsageError: ``name`` is the path of something that exists, or is not a name.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    name = _parsed(name)
    with _explained(name, want), _log_as_warnings():
        revision, unreachable = _resolve(name, want)
        try:
            path = _fetched(
                name, want, revision, constants.HF_HUB_OFFLINE or unreachable is not None, progress
            )
        except LocalEntryNotFoundError:
            if unreachable is None:
                raise
            raise unreachable from None  # the cache does not have everything either
    if unreachable is not None:
        warnings.warn(
            f"{hub_url()} cannot be reached ({short(unreachable)}); using the copy of {name.repo} "
            f"in the cache, commit {revision.resolved[:8]}",
            BitexportWarning,
            stacklevel=2,
        )
    return path


def _fetched(
    name: HubName, want: Want, revision: ResolvedRevision, offline: bool, progress: Progress
) -> Path:
    """The local path of a commit, from the cache alone if ``offline``."""
    folder = _first_files(name, revision, offline)
    listed = _listing(name, revision, folder)
    chosen = select(name, want, listed, folder)
    _check_inside(name, chosen.files)
    # small files first: what an interruption leaves is then complete but for the weights
    sizes = {path: listed[path] for path in sorted(chosen.files, key=lambda path: listed[path])}
    if not offline:
        _check_disk(name, revision, folder, sizes)
    _download(name, revision, sizes, offline=offline, progress=progress)
    return folder / chosen.path


def _check_inside(name: HubName, files: Sequence[str]) -> None:
    """Raise HubError for a file that the hub lists outside the repository's folder."""
    for path in map(PurePosixPath, files):
        if path.is_absolute() or ".." in path.parts:
            raise HubError(
                f"{name.repo} lists the file {str(path)!r}, which is outside its folder; do not trust this "
                "repository, or give another file of it"
            )


def _parsed(name: HubName | str) -> HubName:
    found = hub_name(name) if isinstance(name, str) else name
    if found is None:
        raise UsageError(f"{name!r} does not name a model on the hub; expected OWNER/REPO[:FILE.gguf]")
    return found


def _resolve(name: HubName, want: Want) -> tuple[ResolvedRevision, Exception | None]:
    """The commit of the wanted revision; if it is the cache's, also why the hub cannot be reached."""
    from huggingface_hub import HfApi, ResolvedRevision, constants
    from huggingface_hub.errors import RevisionResolutionError

    api = HfApi()
    try:
        cached = api.resolve_revision(name.repo, revision=name.revision, local_files_only=True)
    except RevisionResolutionError:
        cached = None
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise not_cached(name, want)
        return cached, None
    try:
        commit = _commit(api, name)
    except Exception as error:
        if cached is None or not is_unreachable(error):
            raise
        return cached, error
    if cached is None or cached.resolved != commit:
        api.resolve_revision(name.repo, revision=name.revision)  # remembers the commit for offline use
    return ResolvedRevision(commit, name.revision, name.repo), None


def _commit(api: Any, name: HubName) -> str:
    """The commit of the wanted revision, as the hub says; tries again while it is overloaded."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    for pause in (*_PAUSES, None):
        try:
            # without a limit, it would wait for ever behind a firewall that drops packets
            limit = constants.HF_HUB_ETAG_TIMEOUT
            return str(api.model_info(name.repo, revision=name.revision, timeout=limit).sha)
        except HfHubHTTPError as error:
            if pause is None or error.response.status_code not in _OVERLOADED:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _first_files(name: HubName, revision: ResolvedRevision, offline: bool) -> Path:
    """Download the files that decide which others are needed, and remember the commit's listing.

    Returns:
        The folder of the commit, which does not exist if none of these files does.
    """
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        name.repo,
        revision=revision,
        allow_patterns=list(FIRST),
        local_files_only=offline,
        tqdm_class=_bar_class(ignore, 0, 0),
    )
    return Path(folder)


def _download(
    name: HubName,
    revision: ResolvedRevision,
    sizes: Mapping[str, int],
    *,
    offline: bool,
    progress: Progress = ignore,
) -> None:
    """Download files that are not in the cache, one after another: Ctrl-C does not wait for other threads."""
    from huggingface_hub import hf_hub_download

    done, total = 0, sum(sizes.values())
    for path, size in sizes.items():
        progress(ProgressEvent(done, total, "B", ""))
        hf_hub_download(
            name.repo,
            path,
            revision=revision,
            local_files_only=offline,
            tqdm_class=_bar_class(progress, done, total),
        )
        done += size


def _listing(name: HubName, revision: ResolvedRevision, folder: Path) -> dict[str, int]:
    """The bytes of every file of the commit; of those in the cache if it has no listing."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(name.repo, revision=revision)}
    except CachedRepoTreeNotFoundError:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _check_disk(name: HubName, revision: ResolvedRevision, folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise HubError if what has to be downloaded does not fit on the disk."""
    from huggingface_hub import constants, snapshot_download

    needed = sum(size for path, size in sizes.items() if not (folder / path).exists())
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if needed <= free:
        return
    # another commit may share the large files, which only the hub knows
    planned = snapshot_download(
        name.repo,
        revision=revision,
        allow_patterns=[glob.escape(path) for path in sizes],
        tqdm_class=_bar_class(ignore, 0, 0),
        dry_run=True,
    )
    needed = sum(file.file_size or 0 for file in planned if not file.is_cached)
    if needed > free:
        raise HubError(
            f"{name} needs {needed / 1e6:,.1f} MB, and {constants.HF_HUB_CACHE} has {free / 1e6:,.1f} MB "
            "free; free some space, or set HF_HOME to a folder on another disk"
        )


def _bar_class(progress: Progress, before: int, total: int) -> Any:
    """A tqdm for ``huggingface_hub`` that draws nothing and reports a file's bytes to ``progress``.

    Args:
        progress: the callback.
        before: bytes of the files that were downloaded before.
        total: bytes of all files.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings.pop("name", None)
            super().__init__(*arguments, **{**settings, "disable": False, "file": io.StringIO()})

        def display(self, *_arguments: Any, **_settings: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool:
            super().update(n)
            progress(ProgressEvent(before + int(self.n), total, "B", ""))
            return True

    return Bar


@contextmanager
def _explained(name: HubName, want: Want) -> Iterator[None]:
    """Turn the errors of ``huggingface_hub`` into a HubError of one sentence."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        known = explain(error, name, want)
        if known is None:
            raise
        raise known from error


@contextmanager
def _log_as_warnings() -> Iterator[None]:
    """Show what ``huggingface_hub`` logs, such as a download that is resumed, as warnings of one line."""
    from huggingface_hub.utils import logging as hub_logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(without_secrets(record.getMessage()).split())
            if not text.startswith("No files matched"):  # a repository without settings files
                warnings.warn(f"hub: {text}", BitexportWarning, stacklevel=2)

    logger = hub_logging.get_logger()
    before, handler = list(logger.handlers), Handler(logging.WARNING)
    for each in before:
        logger.removeHandler(each)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        for each in before:
            logger.addHandler(each)
