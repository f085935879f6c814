"""What must not get into a file or a message: passwords in the hub's address, signatures of downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.gguf.reader import read_gguf
from bitexport.hub import HubSource
from bitexport.hub.address import without_secrets
from tests.hub.conftest import Cli
from tests.support.cli import one_line
from tests.support.hub import TOKEN, Hub

Made = Callable[..., Path]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://hub.example", "https://hub.example"),
        ("https://me:secret@hub.example/api@v1", "https://hub.example/api@v1"),
        ("'http://secret@h:1/a' (503)", "'http://h:1/a' (503)"),
        (
            "from https://cdn.example/a?Signature=secret&Key=b: timed out",
            "from https://cdn.example/a timed out",
        ),
        ("mail me@hub.example?", "mail me@hub.example?"),
    ],
)
def test_addresses(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


def test_a_password_in_the_address(
    hub: Hub,
    cli: Cli,
    checkpoint_of: Made,
    gguf_of: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    hub.add_folder("acme/tiny", checkpoint_of("packed-multiply"))
    address = hub.url.replace("//", "//me:secret@")
    target = tmp_path / "out.gguf"
    done = cli("convert", "acme/tiny", target, "--embed-type", "f16", env={"HF_ENDPOINT": address})
    assert done.returncode == 0, done.stderr
    assert read_gguf(target).metadata["general.source.repo_url"] == f"{hub.url}/acme/tiny"
    assert b"secret" not in target.read_bytes()
    gguf = gguf_of("packed-multiply")
    nobody = {"HF_ENDPOINT": "http://me:secret@127.0.0.1:9"}
    said = [
        one_line(cli("inspect", "acme/none", env={"HF_ENDPOINT": address}), 1),
        one_line(cli("inspect", "acme/none", env=nobody), 1),
        one_line(cli("push", gguf, "me/tiny", env={"HF_ENDPOINT": address}), 1),
        one_line(cli("push", gguf, "me/tiny", env={**nobody, "HF_TOKEN": TOKEN}), 1),
        cli("inspect", "acme/tiny", env=nobody).stderr,
    ]
    for text in said:
        assert "http://127.0.0.1:" in text
        assert "secret" not in text
        assert TOKEN not in text
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert HubSource("acme/tiny", "").url == f"{hub.url}/acme/tiny"
