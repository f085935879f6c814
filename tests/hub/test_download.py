"""Downloads from a hub on loopback: what is asked for, what is kept, and what happens when it fails."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.conftest import Cli, document
from tests.support import hub as loopback
from tests.support.cli import one_line
from tests.support.hub import TOKEN, Hub

Made = Callable[..., Path]


def test_only_what_is_needed_and_only_once(hub: Hub, cli: Cli, checkpoint_of: Made) -> None:
    more = {"README.md": b"x", "model.onnx": b"x", "tiny.gguf": b"x", "pytorch_model.bin": b"x"}
    hub.add_folder("acme/tiny", checkpoint_of("packed-multiply"), **more)
    assert document(cli("inspect", "acme/tiny", "--json"))["kind"] == "checkpoint"
    assert sorted(hub.downloaded()) == [
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ]
    assert sum("/tree/" in line for line in hub.requests) == 1
    hub.requests.clear()
    document(cli("inspect", "acme/tiny", "--json"))
    assert hub.requests == ["GET /api/models/acme/tiny"]


def test_a_new_commit_is_followed_and_an_old_one_can_be_named(hub: Hub, cli: Cli, gguf_of: Made) -> None:
    first = hub.add("acme/tiny", {"a.gguf": gguf_of("packed-multiply").read_bytes()})
    hub.repositories["acme/tiny"].refs["v1"] = first
    second = hub.repositories["acme/tiny"].commit({"a.gguf": gguf_of("packed-divide").read_bytes()})
    paths = [
        document(cli("inspect", *arguments, "--json"))["path"]
        for arguments in (
            ("acme/tiny",),
            ("acme/tiny", "--revision", "v1"),
            ("acme/tiny@v1",),
            ("acme/tiny", "--revision", first),
        )
    ]
    assert [Path(path).parent.name for path in paths] == [second, first, first, first]
    assert hub.downloaded() == ["a.gguf", "a.gguf"]


def python(hub: Hub, home: Path, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **loopback.environment(hub, home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_download_that_breaks_off_is_resumed(hub: Hub, tmp_path: Path) -> None:
    piece = 10 << 20  # what huggingface_hub writes at once
    content = os.urandom(5 * piece // 2)
    hub.add("acme/tiny", {"a.gguf": content})
    hub.break_after = [piece + 1000, piece + 2000]
    program = (
        "from bitexport.hub import fetch; events = []\n"
        "print(fetch('acme/tiny', 'gguf', events.append).absolute())\n"
        "print(events[0].done, events[-1].done, {event.total for event in events})"
    )
    done = python(hub, tmp_path / "home", program)
    assert done.returncode == 0, done.stderr
    assert hub.ranges == [f"bytes={piece}-", f"bytes={2 * piece}-"]
    assert hub.downloaded() == ["a.gguf"] * 3
    assert done.stderr.count("BitexportWarning: hub: Error while downloading") == 2
    assert done.stderr.count("Trying to resume download") == 2
    path, progress = done.stdout.splitlines()
    assert Path(path).read_bytes() == content
    assert progress == f"0 {len(content)} {{{len(content)}}}"


def test_after_an_interruption_complete_files_are_kept(
    hub: Hub, cli: Cli, checkpoint_of: Made, tmp_path: Path
) -> None:
    hub.add_folder("acme/tiny", checkpoint_of("packed-multiply"))
    hub.pause = 0.4  # the weights take seconds, the other files one pause
    process = subprocess.Popen(
        [sys.executable, "-m", "bitexport", "inspect", "acme/tiny"],
        env={**os.environ, **loopback.environment(hub, tmp_path / "home")},
        stderr=subprocess.PIPE,
        text=True,
    )
    snapshots = tmp_path / "home" / "hub" / "models--acme--tiny" / "snapshots"
    hub.wait_for("model.safetensors")
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.strip() == "interrupted"
    assert not list(snapshots.glob("*/model.safetensors"))
    hub.pause = 0
    hub.requests.clear()
    document(cli("inspect", "acme/tiny", "--json"))
    assert "model.safetensors" in hub.downloaded()
    assert "tokenizer.json" not in hub.downloaded()


def test_a_slow_hub(hub: Hub, cli: Cli, gguf_of: Made) -> None:
    hub.add("acme/tiny", {"a.gguf": gguf_of("packed-multiply").read_bytes()})
    hub.pause = 0.3
    assert document(cli("inspect", "acme/tiny", "--json"))["kind"] == "gguf"
    assert hub.downloaded() == ["a.gguf"]


def test_an_overloaded_hub_is_asked_again(hub: Hub, cli: Cli, gguf_of: Made) -> None:
    hub.add("acme/tiny", {"a.gguf": gguf_of("packed-multiply").read_bytes()})
    hub.failures = [503]
    assert document(cli("inspect", "acme/tiny", "--json"))["kind"] == "gguf"


def test_a_broken_hub(hub: Hub, cli: Cli) -> None:
    hub.failures = [503] * 20
    line = one_line(cli("inspect", "acme/tiny"), 1)
    assert line == f"error: acme/tiny: {hub.url} answered 503; it is overloaded or broken: try again later"


def test_no_such_model(hub: Hub, cli: Cli) -> None:
    line = one_line(cli("convert", "acme/none", "out.gguf"), 1)
    assert line.startswith(f"error: acme/none is neither a path here nor a model on {hub.url} ")
    assert line.endswith("for a private model log in with: hf auth login")


def test_a_private_model_needs_a_token(hub: Hub, cli: Cli, gguf_of: Made) -> None:
    content = gguf_of("packed-multiply").read_bytes()
    hub.add("acme/secret", {"a.gguf": content}, private=True)
    assert "hf auth login" in one_line(cli("inspect", "acme/secret"), 1)
    line = one_line(cli("inspect", "acme/secret", env={"HF_TOKEN": "hf_wrong"}), 1)
    assert line == f"error: {hub.url} does not accept your token; log in again with: hf auth login"
    document(cli("inspect", "acme/secret", "--json", env={"HF_TOKEN": TOKEN}))


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_gated_model(hub: Hub, cli: Cli, token: str) -> None:
    hub.add("acme/gated", {"a.gguf": b"x"}, gated=True)
    line = one_line(cli("run", "acme/gated", "-p", "x", env={"HF_TOKEN": token}), 1)
    assert line == (
        f"error: acme/gated is gated: ask for access on {hub.url}/acme/gated, and when it is granted, log in "
        "with: hf auth login"
    )


@pytest.mark.parametrize("path", ["../../../x.gguf", "/tmp/x.gguf", "a/../../x.gguf"])
def test_a_file_outside_the_repository(hub: Hub, cli: Cli, path: str) -> None:
    hub.add("acme/tiny", {path: b"x"})
    for name in ("acme/tiny", f"acme/tiny:{path}"):
        line = one_line(cli("inspect", name), 1)
        assert line.startswith(f"error: acme/tiny lists the file '{path}', which is outside its folder; ")
    assert hub.downloaded() == []


def test_no_such_revision(hub: Hub, cli: Cli) -> None:
    hub.add("acme/tiny", {"a.gguf": b"x"})
    line = one_line(cli("inspect", "acme/tiny", "--revision", "v9"), 1)
    assert line.startswith("error: acme/tiny has no revision 'v9'; expected a branch, a tag or a commit")


def test_an_unreachable_hub_and_nothing_cached(offline: Cli) -> None:
    line = one_line(offline("convert", "acme/tiny", "out.gguf", "--revision", "v1"), 1)
    assert "acme/tiny@v1 is not a path here, and http://127.0.0.1:9 cannot be reached (" in line
    assert line.endswith(
        "where there is a network, run: hf download acme/tiny --revision v1 --local-dir tiny and give tiny"
    )


@pytest.mark.parametrize("command", [("inspect", "acme/tiny"), ("push", "GGUF", "acme/tiny")])
def test_a_hub_that_does_not_answer(cli: Cli, gguf_of: Made, command: tuple[str, ...]) -> None:
    """A firewall that drops packets must not make a command wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        variables = {"HF_ENDPOINT": url, "HF_HUB_ETAG_TIMEOUT": "1", "HF_TOKEN": TOKEN}
        arguments = [gguf_of("packed-multiply") if word == "GGUF" else word for word in command]
        line = one_line(cli(*arguments, env=variables), 1)
    assert f"{url} cannot be reached (timed out)" in line


def test_an_unreachable_hub_and_a_cached_model(hub: Hub, cli: Cli, offline: Cli, gguf_of: Made) -> None:
    commit = hub.add("acme/tiny", {"a.gguf": gguf_of("packed-multiply").read_bytes()})
    document(cli("inspect", "acme/tiny", "--json"))
    done = offline("inspect", "acme/tiny", "--json")
    assert done.returncode == 0
    assert f"using the copy of acme/tiny in the cache, commit {commit[:8]}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unreachable_hub_and_a_commit_that_is_not_cached(
    hub: Hub, cli: Cli, offline: Cli, gguf_of: Made
) -> None:
    hub.add("acme/tiny", {name: gguf_of("packed-multiply").read_bytes() for name in ("a.gguf", "b.gguf")})
    document(cli("inspect", "acme/tiny:a.gguf", "--json"))
    for name in (f"acme/tiny@{'0' * 40}:a.gguf", "acme/tiny:b.gguf"):
        line = one_line(offline("inspect", name), 1)
        assert line.startswith(
            f"error: {name} is not a path here, and http://127.0.0.1:9 cannot be reached ("
        )


def test_offline_mode(hub: Hub, cli: Cli, offline: Cli, gguf_of: Made) -> None:
    hub.add("acme/tiny", {name: gguf_of("packed-multiply").read_bytes() for name in ("a.gguf", "b.gguf")})
    document(cli("inspect", "acme/tiny:a.gguf", "--json"))
    hub.requests.clear()
    mode = {"HF_HUB_OFFLINE": "1"}
    for run in (cli, offline):
        assert document(run("inspect", "acme/tiny:a.gguf", "--json", env=mode))["kind"] == "gguf"
        line = one_line(run("inspect", "acme/tiny:b.gguf", env=mode), 1)
        assert "HF_HUB_OFFLINE is set while" in line
        assert line.endswith("run: hf download acme/tiny b.gguf --local-dir tiny and give tiny/b.gguf")
        assert "HF_HUB_OFFLINE is set while" in one_line(run("inspect", "acme/other", env=mode), 1)
        line = one_line(run("run", "acme/other", "-p", "x", env=mode), 1)
        assert line.endswith(
            "run: hf download acme/other --include '*.gguf' --local-dir other and give the file in other"
        )
    assert hub.requests == []


@pytest.mark.parametrize("name", ["acme/tiny", "acme/tiny:a.gguf"])
def test_the_command_of_the_message_works(
    hub: Hub, offline: Cli, gguf_of: Made, tmp_path: Path, name: str
) -> None:
    hub.add("acme/tiny", {"a.gguf": gguf_of("packed-multiply").read_bytes(), "README.md": b"x"})
    line = one_line(offline("run", name, "-p", "x"), 1)
    command, place = re.findall(r"run: (hf download .+) and give (?:the file in )?(\S+)$", line)[0]
    assert ("the file in" in line) == (":" not in name)
    program, *arguments = shlex.split(command)
    subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments],
        cwd=tmp_path,
        env={**os.environ, **loopback.environment(hub, tmp_path / "other-home")},
        check=True,
        capture_output=True,
    )
    found = tmp_path / place
    assert (found if found.suffix else found / "a.gguf").is_file()
    assert not (tmp_path / "tiny" / "README.md").exists()


def test_a_disk_that_is_too_small(hub: Hub, tmp_path: Path) -> None:
    hub.add("acme/tiny", {"a.gguf": b"x" * 3_000_000})
    program = (
        "import shutil; full = shutil._ntuple_diskusage(9_000_000, 8_000_000, 1_000_000)\n"
        "shutil.disk_usage = lambda path: full\n"
        "from bitexport.cli import main; main(['inspect', 'acme/tiny'])"
    )
    line = one_line(python(hub, tmp_path / "home", program), 1)
    assert line.startswith("error: acme/tiny needs 3.0 MB, and ")
    assert line.endswith("has 1.0 MB free; free some space, or set HF_HOME to a folder on another disk")
    assert hub.downloaded() == []
