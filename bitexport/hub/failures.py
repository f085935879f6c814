"""Says in one sentence why the hub did not do what was asked, and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from bitexport.errors import HubError
from bitexport.hub.address import hub_url, without_secrets
from bitexport.hub.names import HubName

UPLOAD = "upload"

#: What ``hf download`` needs of a repository, by what the command can use.
_PATTERNS = {
    "gguf": ("--include", "*.gguf"),
    "checkpoint": ("--exclude", "*.gguf", "--exclude", "*.onnx", "--exclude", "original/*"),
    "adapter": ("--include", "adapter_*"),
    "model": (),
}


def explain(error: Exception, name: HubName, want: str = "model") -> HubError | None:
    """The reason why a model could not be fetched, or uploaded if ``want`` is :data:`UPLOAD`.

    Returns:
        None if ``error`` is not known to come from the hub.
    """
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = hub_url()
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return HubError(
                f"{name}: no space left in {constants.HF_HUB_CACHE}; free some space, or set HF_HOME to a "
                "folder on another disk"
            )
        if isinstance(cause, GatedRepoError):
            return HubError(
                f"{name.repo} is gated: ask for access on {hub}/{name.repo}, and when it is granted, log in "
                "with: hf auth login"
            )
        if isinstance(cause, RevisionNotFoundError):
            return HubError(
                f"{name.repo} has no revision {name.revision!r}; expected a branch, a tag or a commit, as on "
                f"{hub}/{name.repo}/tree/main"
            )
        if isinstance(cause, DisabledRepoError):
            return HubError(f"{name.repo} was disabled by its author; see {hub}/{name.repo}")
        if isinstance(cause, RepositoryNotFoundError) and want == UPLOAD:
            return HubError(
                f"{name.repo} cannot be created or changed with your token; check the owner's name, and "
                "log in with: hf auth login"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return HubError(
                f"{name.repo} is neither a path here nor a model on {hub} that you may see; correct it, or "
                "for a private model log in with: hf auth login"
            )
        if isinstance(cause, HfHubHTTPError):
            return _answered(cause, hub, name)
        if isinstance(cause, httpx2.TransportError):
            return _unreachable(cause, hub, name, want)
    if isinstance(error, LocalEntryNotFoundError):
        return not_cached(name, want) if constants.HF_HUB_OFFLINE else _unreachable(error, hub, name, want)
    if isinstance(error, OSError) and "Consistency check" in str(error):
        return HubError(f"{name}: the download ended early ({short(error)}); run the command again")
    return None


def not_cached(name: HubName, want: str = "model") -> HubError:
    """The error for a model that is not in the cache while HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return HubError(
        f"{name} is not a path here, and HF_HUB_OFFLINE is set while {constants.HF_HUB_CACHE} does not have "
        f"this model completely; unset HF_HUB_OFFLINE, or {_by_hand(name, want)}"
    )


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub did not answer, or answered that it is broken or overloaded."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return int(error.response.status_code) >= 500
    return isinstance(error, httpx2.TransportError)


def short(error: BaseException) -> str:
    """The first line of an error's message, or its kind if it has none."""
    lines = without_secrets(str(error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _answered(error: Exception, hub: str, name: HubName) -> HubError:
    """The error for an answer of the hub that has no kind of its own."""
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    if status == 401:
        return HubError(f"{hub} does not accept your token; log in again with: hf auth login")
    if status == 403:
        return HubError(
            f"{name.repo}: your token does not allow this ({hub} answered 403); make one that does on "
            f"{hub}/settings/tokens, and log in with: hf auth login"
        )
    if status == 429 or status >= 500:
        return HubError(f"{name}: {hub} answered {status}; it is overloaded or broken: try again later")
    return HubError(f"{name}: {hub} answered {status} ({short(error)}); see {hub}/{name.repo}")


def _unreachable(error: BaseException, hub: str, name: HubName, want: str) -> HubError:
    if want == UPLOAD:
        return HubError(
            f"{hub} cannot be reached ({short(error)}), so {name.repo} is unchanged; try again later"
        )
    return HubError(
        f"{name} is not a path here, and {hub} cannot be reached ({short(error)}); {_by_hand(name, want)}"
    )


def _by_hand(name: HubName, want: str) -> str:
    """How to download the model elsewhere, as a clause."""
    place = name.folder
    if name.file:
        place = f"{name.folder}/{name.file}"
    elif want == "gguf":
        place = f"the file in {name.folder}"
    return f"where there is a network, run: {name.download_command(*_PATTERNS[want])} and give {place}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, in order."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
