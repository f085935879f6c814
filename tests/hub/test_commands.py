"""The commands with names of the hub where they take paths."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest

from bitexport.cli import app
from bitexport.cli.hub import path_or_name
from bitexport.gguf.reader import read_gguf
from tests.convert.test_adapter import LINEAR, save_adapter
from tests.hub.conftest import Cli, document
from tests.support.cli import one_line
from tests.support.embedding_models import embedding_checkpoint
from tests.support.foreign_files import split
from tests.support.hub import Hub
from tests.support.tiny_models import Shape
from tests.support.upstream_models import made

Made = Callable[..., Path]
OFFLINE = {"HF_HUB_OFFLINE": "1"}
SHAPE = Shape(hidden=256, ffn=512, layers=1, heads=2, kv_heads=1, vocab=400, context=64)


@pytest.mark.parametrize("packing", ["packed-multiply", "master"])
def test_convert_and_run(hub: Hub, cli: Cli, checkpoint_of: Made, tmp_path: Path, packing: str) -> None:
    """A name, then the same without the hub, then without any network: always the same file."""
    commit = hub.add_folder("acme/tiny-1.58", checkpoint_of(packing, shape=SHAPE))
    local, named, offline = (tmp_path / name for name in ("local.gguf", "named.gguf", "offline.gguf"))
    document(cli("convert", checkpoint_of(packing, shape=SHAPE), local, "--json", "-q"))
    report = document(cli("convert", "acme/tiny-1.58", named, "--json", "-q"))
    assert report["tensors"] == len(read_gguf(named).tensors)
    hub.repositories.clear()
    document(cli("convert", "acme/tiny-1.58", offline, "--json", "-q", env=OFFLINE))
    assert named.read_bytes() == offline.read_bytes()

    file = read_gguf(named)
    assert file.metadata["general.name"] == "tiny-1.58"
    assert file.metadata["general.source.huggingface.repository"] == "acme/tiny-1.58"
    assert file.metadata["general.source.repo_url"] == f"{hub.url}/acme/tiny-1.58"
    assert file.metadata["bitexport.source_commit"] == commit
    before = read_gguf(local)
    assert not any(key.startswith("general.source") for key in before.metadata)
    assert [file.data(tensor).tobytes() for tensor in file.tensors] == [
        before.data(tensor).tobytes() for tensor in before.tensors
    ]
    shown = cli("inspect", named).stdout
    assert "acme/tiny-1.58" in shown
    assert commit in shown

    hub.add("acme/tiny-gguf", {"README.md": b"", "tiny.gguf": named.read_bytes()})
    options = ("-p", "def f", "-n", "4", "--temperature", "0", "--json", "-q")
    expected = document(cli("run", named, *options))["completion"]
    assert document(cli("run", "acme/tiny-gguf", *options))["completion"] == expected
    assert document(cli("run", "acme/tiny-gguf:tiny.gguf", *options))["completion"] == expected
    assert document(cli("run", "acme/tiny-gguf", *options, env=OFFLINE))["completion"] == expected


def test_convert_a_gguf_file_of_the_hub(hub: Hub, cli: Cli, gguf_of: Made, tmp_path: Path) -> None:
    """The file of a split model keeps what it says of its own source."""
    parts = split(gguf_of("packed-multiply", shape=SHAPE), tmp_path / "model", 3)
    commit = hub.add("acme/parts", {part.name: part.read_bytes() for part in parts})
    document(cli("convert", "acme/parts", tmp_path / "one.gguf", "--json"))
    one = read_gguf(tmp_path / "one.gguf")
    assert one.metadata["bitexport.source_commit"] == commit
    hub.add("acme/one", {"one.gguf": (tmp_path / "one.gguf").read_bytes()})
    document(cli("convert", "acme/one", tmp_path / "two.gguf", "--json"))
    two = read_gguf(tmp_path / "two.gguf")
    assert two.metadata["general.source.huggingface.repository"] == "acme/parts"
    assert two.metadata["bitexport.source_commit"] == commit


def test_convert_with_an_adapter(hub: Hub, cli: Cli, checkpoint_of: Made, tmp_path: Path) -> None:
    hub.add_folder("acme/base", checkpoint_of("master"))
    hub.add_folder("acme/lora", save_adapter(tmp_path / "lora", LINEAR))
    out = tmp_path / "out.gguf"
    assert cli("convert", "acme/base", out, "--adapter", "acme/lora", "-q").returncode == 0
    line = one_line(cli("convert", "acme/lora", tmp_path / "none.gguf"), 1)
    assert line.endswith("run: bitexport convert owner/name OUT.gguf --adapter acme/lora")


def test_convert_as_llama_cpp_does(hub: Hub, cli: Cli, tmp_path: Path) -> None:
    """llama.cpp's converter names a model after its folder, which here is named after a commit."""
    folder, _, _ = made("OLMo-2", tmp_path / "made")
    hub.add_folder("acme/other", folder)
    document(cli("convert", "acme/other", tmp_path / "out.gguf", "--json", "-q"))
    metadata = read_gguf(tmp_path / "out.gguf").metadata
    assert metadata["general.name"] == "other"
    assert metadata["general.source.huggingface.repository"] == "acme/other"


def test_parity_bench_doctor_and_eval(hub: Hub, cli: Cli, checkpoint_of: Made, gguf_of: Made) -> None:
    hub.add_folder("acme/tiny", checkpoint_of("packed-multiply", shape=SHAPE))
    hub.add("acme/tiny-gguf", {"a.gguf": gguf_of("packed-multiply", shape=SHAPE).read_bytes()})
    both = ("acme/tiny", "acme/tiny-gguf")
    report = document(cli("parity", *both, "--prompt", "x", "--tokens", "2", "--json", "-q"))
    assert report["passed"] is True
    report = document(cli("parity", *both, "--revision", "main", "--tokenizer-only", "--json", "-q"))
    assert report["passed"] is True
    rows = document(cli("bench", both[1], "--prompt-tokens", "8", "-n", "2", "-r", "1", "--json", "-q"))[
        "rows"
    ]
    assert {row["test"] for row in rows} == {"pp8", "tg2"}
    done = cli("doctor", *both, "--json", "-q")
    assert json.loads(done.stdout)["verdict"], done.stderr
    report = document(cli("eval", both[1], "--teacher", both[1], "--limit", "1", "--json", "-q"))
    assert len(report["columns"]) == 2


def test_embed(hub: Hub, cli: Cli, tmp_path: Path) -> None:
    hub.add_folder("acme/embedding", embedding_checkpoint(tmp_path / "checkpoint"))
    assert cli("convert", "acme/embedding", tmp_path / "m.gguf", "-q").returncode == 0
    hub.add("acme/embedding-gguf", {"m.gguf": (tmp_path / "m.gguf").read_bytes()})
    options = ("--text", "a", "--json", "-q")
    expected = document(cli("embed", tmp_path / "m.gguf", *options))["rows"]
    assert document(cli("embed", "acme/embedding-gguf", *options))["rows"] == expected


def test_chat(hub: Hub, cli: Cli, gguf_of: Made) -> None:
    model = gguf_of("packed-multiply", shape=SHAPE)
    hub.add("acme/tiny-gguf", {"tiny.gguf": model.read_bytes()})
    options = ("--no-template", "-n", "4", "--temperature", "0", "--json", "-q")
    expected = json.loads(cli("chat", model, *options, input="def f").stdout)["messages"]
    assert [message["role"] for message in expected] == ["user", "assistant"]
    for name in (("acme/tiny-gguf",), ("acme/tiny-gguf:tiny.gguf", "--revision", "main")):
        assert json.loads(cli("chat", *name, *options, input="def f").stdout)["messages"] == expected
    one_line(cli("chat", "acme/tiny-gguf", "--revision", "v9", input=""), 1)


def test_a_mistake_in_an_option_downloads_nothing(hub: Hub, cli: Cli) -> None:
    for command in (("chat", "acme/tiny"), ("run", "acme/tiny", "-p", "x")):
        assert "--grammar" in one_line(cli(*command, "--grammar", "missing.gbnf"), 2)
    assert hub.requests == []


@pytest.mark.parametrize(
    "command", [("chat",), ("run", "-p", "x"), ("bench",), ("embed", "--text", "x"), ("card",)]
)
def test_a_repository_with_nothing_but_a_checkpoint(hub: Hub, cli: Cli, command: tuple[str, ...]) -> None:
    hub.add("acme/tiny-1.58", {"config.json": b"{}", "model.safetensors": b""})
    line = one_line(cli(command[0], "acme/tiny-1.58", *command[1:]), 1)
    assert line.endswith("convert it first: bitexport convert acme/tiny-1.58 tiny-1.58.gguf")
    assert "model.safetensors" not in hub.downloaded()


def test_writing_into_a_folder(hub: Hub, cli: Cli, checkpoint_of: Made, tmp_path: Path) -> None:
    """The file is named after the repository, not after the commit or the digest in the cache."""
    hub.add_folder("acme/tiny-1.58", checkpoint_of("packed-multiply", shape=SHAPE))
    document(cli("convert", "acme/tiny-1.58", f"{tmp_path}/", "--json", "-q"))
    made = tmp_path / "tiny-1.58.gguf"
    hub.add("acme/gguf", {"first.gguf": made.read_bytes()})
    document(cli("convert", "acme/gguf", f"{tmp_path}/", "--json", "-q"))
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == ["first.gguf", made.name]


@pytest.mark.parametrize(
    "command",
    ["convert", "run", "chat", "inspect", "parity", "bench", "doctor", "eval", "embed", "card"],
)
def test_every_command_has_a_revision(cli: Cli, command: str) -> None:
    assert "--revision" in cli(command, "-h").stdout


def test_a_revision_of_a_path(cli: Cli, gguf_of: Made) -> None:
    line = one_line(cli("inspect", gguf_of("packed-multiply"), "--revision", "v1"), 2)
    assert line.endswith("packed-multiply.gguf is a path; leave it out")
    line = one_line(cli("inspect", "acme/tiny@v2", "--revision", "v1"), 2)
    assert line == ("error: acme/tiny@v2 names a revision, and so does --revision v1; give one of them")


def test_what_is_written_like_a_path_is_never_looked_up(hub: Hub, cli: Cli, gguf_of: Made) -> None:
    hub.add("acme/tiny", {"a.gguf": gguf_of("packed-multiply").read_bytes()})
    for text in ("./acme/tiny", "acme/tiny/", "acme//tiny"):
        assert "/acme/tiny" in one_line(cli("inspect", text), 1)
    one_line(cli("run", "./acme/tiny", "-p", "x"), 1)
    one_line(cli("convert", "tests", "out.gguf", "--dry-run", "--adapter", "./acme/tiny"), 1)
    assert hub.requests == []


def test_every_argument_that_may_be_a_name_tells_names_from_paths() -> None:
    names = {"checkpoint", "gguf", "adapter", "model", "teacher", "student_gguf", "teacher_gguf"}
    parsers = {}
    for command in app.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            if name in names or (command.name, name) == ("inspect", "path"):
                found = (each.parser for each in getattr(hint, "__metadata__", ()))
                parsers[command.name, name] = next(found, None)
    assert parsers.pop(("push", "gguf")) is None  # a file is uploaded
    assert ("run", "gguf") in parsers
    assert {key for key, parser in parsers.items() if parser is not path_or_name} == set()


def test_an_output_that_exists_is_refused_before_the_download(
    hub: Hub, cli: Cli, checkpoint_of: Made, tmp_path: Path
) -> None:
    hub.add_folder("acme/tiny", checkpoint_of("packed-multiply"))
    target = tmp_path / "out.gguf"
    target.write_bytes(b"mine")
    assert "already exists; use --force" in one_line(cli("convert", "acme/tiny", target), 1)
    assert hub.requests == []
    assert document(cli("convert", "acme/tiny", target, "--dry-run", "--embed-type", "f16", "--json", "-q"))
    assert target.read_bytes() == b"mine"


def test_a_path_needs_no_network_and_no_library(gguf_of: Made) -> None:
    arguments = ["run", str(gguf_of("packed-multiply")), "-p", "x", "-n", "1"]
    program = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        f"from bitexport.cli import main; main({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
