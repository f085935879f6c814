"""Uploads a GGUF file and its card to the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitexport.errors import HubError, UsageError
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.health.scan import scan_gguf
from bitexport.hub.address import hub_url
from bitexport.hub.failures import UPLOAD, explain
from bitexport.hub.names import HubName, hub_name
from bitexport.progress import Progress, ignore
from bitexport.runtime.loading import check_model
from bitexport.sharing.card import BLANK, card
from bitexport.system.reading import read_text

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class PushReport:
    """What was uploaded.

    Attributes:
        repo: ``OWNER/REPO``.
        url: its page.
        commit: the new commit.
        files: the uploaded files, by their paths in the repository.
        created: whether the repository is new.
        private: whether only its owners can see it.
        warnings: what its author should know.
    """

    repo: str
    url: str
    commit: str
    files: tuple[str, ...]
    created: bool
    private: bool
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return asdict(self)


def push(
    gguf: str | Path,
    repo: str,
    *,
    card_file: str | Path | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    progress: Progress = ignore,
    bars: bool = False,
) -> PushReport:
    """Upload a GGUF file, all parts of a split one, and its card in one commit.

    Nothing is asked, and nothing is uploaded that fails bitexport's own checks.

    Args:
        gguf: the file; of a split model, the first part.
        repo: ``OWNER/REPO``, which is created if it does not exist.
        card_file: the model card. If None, a repository without one gets a card of the file's facts.
        private: create the repository as a private one.
        revision: the branch, which is created if it does not exist; main if None.
        message: of the commit.
        progress: called while the file is checked.
        bars: draw ``huggingface_hub``'s own progress bars of the upload on stderr.

    Raises:
        HubError: there is no token, access is denied, the hub cannot be reached, or the repository is
            public although ``private`` was asked for.
        GGUFError, UnsupportedError, TokenizerError: the file does not load.
        UsageError: ``repo`` is not a name, or the card cannot be read.
    """
    checked = check(gguf, repo, card_file=card_file, revision=revision, progress=progress)
    return upload(checked, private=private, message=message, bars=bars)


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that may be uploaded: what :func:`check` found, for :func:`upload`."""

    file: GGUFFile
    name: HubName
    card: str | None
    warnings: tuple[str, ...]


def check(
    gguf: str | Path,
    repo: str,
    *,
    card_file: str | Path | None = None,
    revision: str | None = None,
    progress: Progress = ignore,
) -> Checked:
    """The first half of :func:`push`, which uploads nothing; arguments and errors as there."""
    name = _repository(repo, revision)
    file = read_gguf(gguf)
    text = None if card_file is None else _read_card(Path(card_file))
    _check_token(name)
    return Checked(file, name, text, tuple(check_shareable(gguf, progress)))


def upload(
    checked: Checked, *, private: bool = False, message: str | None = None, bars: bool = False
) -> PushReport:
    """The second half of :func:`push`; arguments and errors as there."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    name, parts, text = checked.name, checked.file.parts, checked.card
    warnings = list(checked.warnings)
    api = HfApi(library_name="bitexport")
    with nullcontext() if bars else disable_progress_bars(), _translated(name):
        created, is_private = _ensure(api, name, private)
        if text is None and (created or not api.file_exists(name.repo, CARD, revision=name.revision)):
            text = card(checked.file.path, repo=name.repo).text
        if text is not None and BLANK in text:
            warnings.append(f"the card has blanks, marked {BLANK}; fill them in on {_url(name)}")
        files = {part.name: part for part in parts}
        commit = _upload(api, name, files, text, message or f"Add {parts[0].name}")
    return PushReport(
        repo=name.repo,
        url=_url(name),
        commit=commit,
        files=(*files, *([CARD] if text is not None else [])),
        created=created,
        private=is_private,
        warnings=tuple(warnings),
    )


def check_shareable(gguf: str | Path, progress: Progress = ignore) -> list[str]:
    """Check that a file loads and that no tensor is damaged; returns warnings.

    Raises:
        GGUFError, UnsupportedError, TokenizerError: libllama would not load it, or would run it wrongly.
        HubError: a tensor is damaged.
    """
    check_model(gguf, trial=True)
    findings = scan_gguf(read_gguf(gguf), progress)
    damaged = [finding for finding in findings if finding.damage]
    if damaged:
        raise HubError(
            f"{gguf} is not uploaded: {damaged[0].message}; convert the checkpoint again, and see bitexport "
            "inspect --health"
        )
    return [finding.message for finding in findings if finding.level == "warning"]


def _repository(repo: str, revision: str | None) -> HubName:
    """The name of a repository to upload to; a folder of this name does not matter."""
    name = hub_name(f"{repo}@{revision or 'main'}")
    if name is None or name.repo != repo:
        raise UsageError(f"{repo!r} is not the name of a repository; expected OWNER/REPO")
    return HubName(repo, revision)


def _read_card(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(
            f"--card {path}: {reason}; write one with bitexport card FILE.gguf -o README.md"
        ) from error


def _check_token(name: HubName) -> None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if not get_token():
        raise HubError(
            f"there is no token to upload to {name.repo} with; log in with: hf auth login, or set HF_TOKEN "
            f"to one from {hub_url()}/settings/tokens that may write"
        )


def _ensure(api: Any, name: HubName, private: bool) -> tuple[bool, bool]:
    """Create the repository and the branch unless they exist; returns whether it is new, and private."""
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(name.repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RepositoryNotFoundError:
        api.create_repo(name.repo, private=private, exist_ok=True)
        created, is_private = True, private
    else:
        created, is_private = False, bool(found.private)
        if private and not is_private:
            raise HubError(
                f"{name.repo} exists and is public, so --private does not hide what is uploaded; make it "
                f"private on {_url(name)}/settings, or leave out --private"
            )
    if name.revision is not None:
        api.create_branch(name.repo, branch=name.revision, exist_ok=True)
    return created, is_private


def _upload(api: Any, name: HubName, files: dict[str, Path], text: str | None, message: str) -> str:
    from huggingface_hub import CommitOperationAdd

    added = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
    if text is not None:
        added.append(CommitOperationAdd(CARD, text.encode()))
    commit = api.create_commit(name.repo, added, commit_message=message, revision=name.revision)
    return str(commit.oid)


def _url(name: HubName) -> str:
    branch = f"/tree/{name.revision}" if name.revision else ""
    return f"{hub_url()}/{name.repo}{branch}"


@contextmanager
def _translated(name: HubName) -> Iterator[None]:
    """Turn errors of the hub into HubError."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        known = explain(error, name, UPLOAD)
        if known is None:
            raise
        raise known from error
