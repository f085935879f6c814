"""A path or a name: what exists is a path, and the rest must look like a name."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bitexport.errors import UsageError
from bitexport.hub import HubName, fetch, hub_name, source_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("microsoft/bitnet-b1.58-2B-4T", HubName("microsoft/bitnet-b1.58-2B-4T")),
        ("owner/repo-gguf:model.gguf", HubName("owner/repo-gguf", None, "model.gguf")),
        ("owner/repo:sub/model.gguf", HubName("owner/repo", None, "sub/model.gguf")),
        ("owner/repo@v1", HubName("owner/repo", "v1")),
        ("owner/repo@refs/pr/1:model.gguf", HubName("owner/repo", "refs/pr/1", "model.gguf")),
        ("owner/repo.gguf:model.gguf", HubName("owner/repo.gguf", None, "model.gguf")),
    ],
)
def test_names(text: str, expected: HubName) -> None:
    assert hub_name(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "model.gguf",
        "checkpoint",
        "out/model.gguf",
        "ckpt/model.safetensors",
        "ckpt/config.json",
        "/models/tiny",
        "./models/tiny",
        "../tiny",
        "~/tiny",
        "a/b/c",
        "owner/../repo",
        "owner/re--po",
        "-owner/repo",
        "owner/",
        "owner/repo name",
        "",
    ],
)
def test_paths(text: str) -> None:
    assert hub_name(text) is None


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name("owner/repo") is not None
    Path("owner/repo").mkdir(parents=True)
    assert hub_name("owner/repo") is None
    Path("owner/link").symlink_to("nowhere")  # a damaged path is not a name either
    assert hub_name("owner/link") is None


def test_fetch_wants_a_name(tmp_path: Path) -> None:
    for text in (str(tmp_path), "model.gguf"):
        with pytest.raises(UsageError, match=r"does not name a model on the hub; expected OWNER/REPO"):
            fetch(text)


def test_the_download_command_can_be_pasted() -> None:
    assert HubName("a/b").download_command() == "hf download a/b --local-dir b"
    command = HubName("a/b", "v 1", "my file.gguf").download_command("--include", "*")
    assert shlex.split(command) == [
        *("hf", "download", "a/b", "--revision", "v 1", "my file.gguf", "--local-dir", "b")
    ]


def test_where_a_path_in_the_cache_came_from(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--acme--tiny-1.58" / "snapshots" / COMMIT
    for path in (snapshot, snapshot / "model.gguf", snapshot / "sub" / "model.gguf"):
        found = source_of(path)
        assert found is not None
        assert (found.repo, found.commit) == ("acme/tiny-1.58", COMMIT)
    for other in (
        tmp_path,
        tmp_path / "models--acme--tiny" / "snapshots" / "main",
        tmp_path / "acme" / "snapshots" / COMMIT,
    ):
        assert source_of(other) is None
