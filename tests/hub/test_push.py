"""Uploads to a hub on loopback: what arrives, and what is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.sharing import BLANK, card
from tests.hub.conftest import Cli, document
from tests.support.cli import one_line
from tests.support.foreign_files import split
from tests.support.gguf_files import changed, zero
from tests.support.hub import TOKEN, Hub
from tests.support.tiny_models import Shape

Made = Callable[..., Path]
SHAPE = Shape(hidden=256, ffn=512, layers=1, heads=2, kv_heads=1, vocab=400, context=64)
LOGGED_IN = {"HF_TOKEN": TOKEN}


@pytest.fixture
def gguf(gguf_of: Made) -> Path:
    return gguf_of("packed-multiply", shape=SHAPE)


def files(hub: Hub, name: str, ref: str = "main") -> dict[str, bytes]:
    repository = hub.repositories[name]
    return repository.commits[repository.refs[ref]]


def test_a_new_repository(hub: Hub, cli: Cli, gguf: Path) -> None:
    done = cli("push", gguf, "me/tiny", env=LOGGED_IN)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/me/tiny\n"
    warning, information = done.stderr.splitlines()
    assert warning == f"warning: the card has blanks, marked {BLANK}; fill them in on {hub.url}/me/tiny"
    commit = hub.repositories["me/tiny"].refs["main"]
    assert information == (f"uploaded {gguf.name}, README.md to a new repository, commit {commit[:8]}")
    found = files(hub, "me/tiny")
    assert found[gguf.name] == gguf.read_bytes()
    assert found["README.md"].decode() == card(gguf, repo="me/tiny").text
    assert not hub.repositories["me/tiny"].private
    # and back again
    options = ("-p", "def", "-n", "2", "--temperature", "0", "--json", "-q")
    there = document(cli("run", "me/tiny", *options))
    assert there["completion"] == document(cli("run", gguf, *options))["completion"]


def test_an_existing_repository_keeps_its_card(hub: Hub, cli: Cli, gguf: Path, tmp_path: Path) -> None:
    hub.add("me/tiny", {"README.md": b"mine"})
    report = document(cli("push", gguf, "me/tiny", "--json", "-q", env=LOGGED_IN))
    assert report["files"] == [gguf.name]
    assert report["created"] is False
    assert report["commit"] == hub.repositories["me/tiny"].refs["main"]
    assert files(hub, "me/tiny")["README.md"] == b"mine"
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\n")
    report = document(
        cli("push", gguf, "me/tiny", "--card", tmp_path / "card.md", "--json", "-q", env=LOGGED_IN)
    )
    assert report["files"] == [gguf.name, "README.md"]
    assert files(hub, "me/tiny")["README.md"] == b"---\nlicense: mit\n---\n"


def test_a_branch_and_all_parts(hub: Hub, cli: Cli, gguf: Path, tmp_path: Path) -> None:
    hub.add("me/tiny", {"README.md": b"mine"})
    parts = split(gguf, tmp_path / "model", 6)
    report = document(cli("push", parts[0], "me/tiny", "--revision", "dev", "--json", "-q", env=LOGGED_IN))
    assert report["url"] == f"{hub.url}/me/tiny/tree/dev"
    assert {part.name for part in parts} <= set(files(hub, "me/tiny", "dev"))
    assert set(files(hub, "me/tiny")) == {"README.md"}


def test_private(hub: Hub, cli: Cli, gguf: Path) -> None:
    done = cli("push", gguf, "me/secret", "--private", env=LOGGED_IN)
    assert "to a new private repository" in done.stderr
    assert hub.repositories["me/secret"].private
    assert cli("push", gguf, "me/secret", "--private", "-q", env=LOGGED_IN).returncode == 0
    hub.add("me/open", {"README.md": b""})
    line = one_line(cli("push", gguf, "me/open", "--private", env=LOGGED_IN), 1)
    assert line.startswith("error: me/open exists and is public, so --private does not hide what is uploaded")
    assert set(files(hub, "me/open")) == {"README.md"}


def test_without_a_token(hub: Hub, cli: Cli, gguf: Path) -> None:
    line = one_line(cli("push", gguf, "me/tiny"), 1)
    assert line.startswith("error: there is no token to upload to me/tiny with; log in with: hf auth login")
    line = one_line(cli("push", gguf, "me/tiny", env={"HF_TOKEN": "hf_wrong"}), 1)
    assert line == f"error: {hub.url} does not accept your token; log in again with: hf auth login"
    line = one_line(cli("push", gguf, "me/tiny", env={**LOGGED_IN, "HF_HUB_OFFLINE": "1"}), 1)
    assert line == "error: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it"
    assert hub.repositories == {}


def test_a_bad_file_is_not_uploaded(hub: Hub, cli: Cli, gguf: Path, tmp_path: Path) -> None:
    damaged = changed(gguf, tmp_path / "damaged.gguf", "blk.0.attn_q.weight", zero)
    line = one_line(cli("push", damaged, "me/tiny", env=LOGGED_IN), 1)
    assert "damaged.gguf" in line
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:-100_000])
    assert "cut.gguf" in one_line(cli("push", cut, "me/tiny", env=LOGGED_IN), 1)
    assert "me/tiny" not in one_line(cli("push", tmp_path / "none.gguf", "me/tiny", env=LOGGED_IN), 1)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["tiny", "me/tiny/x", "./me/tiny", "me/tiny@v1", "me/tiny:a.gguf", ""])
def test_not_a_repository(cli: Cli, gguf: Path, name: str) -> None:
    line = one_line(cli("push", gguf, name, env=LOGGED_IN), 2)
    assert line == f"error: {name!r} is not the name of a repository; expected OWNER/REPO"


def test_a_card_that_is_missing(cli: Cli, gguf: Path) -> None:
    line = one_line(cli("push", gguf, "me/tiny", "--card", "none.md", env=LOGGED_IN), 2)
    assert line.endswith("write one with bitexport card FILE.gguf -o README.md")


def test_an_unreachable_hub(offline: Cli, gguf: Path) -> None:
    line = one_line(offline("push", gguf, "me/tiny", env=LOGGED_IN), 1)
    assert line.startswith("error: http://127.0.0.1:9 cannot be reached (")
    assert line.endswith("), so me/tiny is unchanged; try again later")
