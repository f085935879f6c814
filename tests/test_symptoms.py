"""docs/symptoms.md: each message that it quotes is what the command really says."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from bitexport.cli import main
from bitexport.convert import convert
from tests.support.gguf_files import changed, double_scale, rewritten
from tests.support.repository import EN_FR, REPOSITORY, TINY_PYTHON

PAGE = (REPOSITORY / "docs" / "symptoms.md").read_text(encoding="utf-8")

#: Messages that other tests see: where, and which part of them.
ELSEWHERE = {
    "is already loaded in this process": ("tests/runtime/test_library.py", "already loaded in this process"),
    "measured another file than this one": ("tests/sharing", "measured another file"),
}

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(
    checkpoint_of: Callable[..., Path], gguf_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Files:
    """Checkpoints and files, sound and not."""
    folder = tmp_path_factory.mktemp("symptoms")
    sound = checkpoint_of("packed-multiply")
    gguf = gguf_of("packed-multiply")

    def checkpoint(name: str, source: Path, change: Callable[[dict[str, Any]], None]) -> Path:
        shutil.copytree(source, folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        change(config)
        (folder / name / "config.json").write_text(json.dumps(config))
        return folder / name

    def keep(config: dict[str, Any]) -> None:
        assert "quantization_config" in config

    def forget_quantization(config: dict[str, Any]) -> None:
        del config["quantization_config"]

    without_tokenizer = checkpoint("bare", sound, keep)
    (without_tokenizer / "tokenizer.json").unlink()
    untrained = checkpoint("untrained", sound, keep)
    (untrained / "trainer_state.json").write_text('{"global_step": 0}')
    python = folder / "python.gguf"
    convert(TINY_PYTHON, python)
    (folder / "cut.gguf").write_bytes(gguf.read_bytes()[:-1000])
    (folder / "run" / "pretrain" / "model").mkdir(parents=True)
    settings = (TINY_PYTHON / "train.toml").read_text()
    (folder / "misspelt.toml").write_text(settings.replace("learning_rate", "lerning_rate"))
    return {
        "folder": folder,
        "sound": sound,
        "gguf": gguf,
        "undeclared": checkpoint("undeclared", sound, forget_quantization),
        "float": checkpoint("float", checkpoint_of("master"), forget_quantization),
        "unknown": checkpoint("unknown", sound, lambda config: config.update(architectures=["NoSuchLM"])),
        "bare": without_tokenizer,
        "untrained": untrained,
        "python": python,
        "plain": rewritten(gguf, folder / "plain.gguf", drop=["tokenizer.chat_template"]),
        "blocks": rewritten(
            gguf,
            folder / "blocks.gguf",
            metadata={"bitexport.diffusion.block_size": 4, "tokenizer.ggml.mask_token_id": 2},
            drop=["tokenizer.ggml.mask_token_id"],
        ),
        "cut": folder / "cut.gguf",
        "doubled": changed(gguf, folder / "doubled.gguf", "blk.0.attn_k.weight", double_scale),
        "misspelt": folder / "misspelt.toml",
    }


OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_XET": "1"}
OTHER_TIER = "neon" if sys.platform != "darwin" else "avx2"

#: What the page quotes, the command, its exit code, and its environment.
CASES: list[tuple[str, list[str], int, dict[str, str]]] = [
    ("already exists; use --force to replace it", ["convert", "{sound}", "{gguf}"], 1, {}),
    ("does not exist; expected a checkpoint folder", ["convert", "{folder}/none", "{folder}/o.gguf"], 1, {}),
    ("is not a path here, and ... cannot be reached", ["run", "owner/repo", "-p", "a"], 1, OFFLINE),
    (
        "has a weight_scale, but config.json has no quantization_config",
        ["convert", "{undeclared}", "{folder}/o.gguf"],
        1,
        {},
    ),
    (
        "contains values other than -a, 0 and a, so its weights are not ternary",
        ["convert", "{float}", "{folder}/o.gguf"],
        1,
        {},
    ),
    ("no tokenizer.json or tokenizer.model", ["convert", "{bare}", "{folder}/o.gguf"], 1, {}),
    ("unknown architecture", ["convert", "{unknown}", "{folder}/o.gguf"], 1, {}),
    ("--strict: the checkpoint looks bad", ["convert", "{untrained}", "{folder}/o.gguf", "--strict"], 1, {}),
    ("is a folder, and a GGUF file is expected", ["run", "{sound}", "-p", "a"], 1, {}),
    ("the file is damaged: convert or download it again", ["run", "{cut}", "-p", "a"], 1, {}),
    ("has no chat template, so it is probably not a chat model", ["chat", "{plain}"], 2, {}),
    (
        "a context of ... tokens was requested; expected at most",
        ["run", "{gguf}", "-p", "a", "--ctx", "100000"],
        2,
        {},
    ),
    ("the context has room for ... tokens instead of", ["run", "{gguf}", "-p", "a", "-n", "99999"], 0, {}),
    (
        "BITEXPORT_TIER=...: kernel tier ... is unknown to this build",
        ["run", "{gguf}", "-p", "a"],
        1,
        {"BITEXPORT_TIER": OTHER_TIER},
    ),
    ("does not contain libllama.so", ["run", "{gguf}", "-p", "a"], 1, {"BITEXPORT_LIB_DIR": "{folder}"}),
    ("the prompt has no tokens", ["run", "{python}", "-p", ""], 2, {}),
    ("decoded here as a plain one", ["run", "{blocks}", "-p", "a", "-n", "1", "--decode", "plain"], 0, {}),
    (
        "is a plain model: it has no bitexport.diffusion.block_size",
        ["run", "{gguf}", "-p", "a", "--decode", "block"],
        2,
        {},
    ),
    ("is tokenized differently", ["parity", str(EN_FR), "{python}", "--prompt", "a word"], 1, {}),
    (
        "differ by more than rounding explains",
        ["parity", "{sound}", "{doubled}", "--prompt", "a word"],
        3,
        {},
    ),
    (
        "every machine that reaches this one could use the model",
        ["serve", "{gguf}", "--host", "0.0.0.0"],
        2,
        {},
    ),
    ("unknown key", ["train", "{misspelt}"], 2, {}),
    (
        "already contains a run",
        ["train", str(TINY_PYTHON / "train.toml"), "--stage", "pretrain", "--run-dir", "{folder}/run"],
        1,
        {},
    ),
    (
        "there is no token to upload",
        ["push", "{gguf}", "owner/repo"],
        1,
        {"HF_HOME": "{folder}/hub", "HF_TOKEN": "", **OFFLINE},
    ),
]


def says(message: str, stderr: str) -> None:
    pattern = ".*".join(re.escape(part) for part in re.split(r" ?\.\.\.:? ?", message))
    assert re.search(pattern, " ".join(stderr.split())), stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("message", "command", "code", "environment"), CASES, ids=[message for message, *_ in CASES]
)
def test_the_command_says_so(
    files: Files,
    run_cli: Callable[..., CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
    message: str,
    command: list[str],
    code: int,
    environment: dict[str, str],
) -> None:
    filled = [part.format(**files) for part in command]
    if command[0] in ("parity", "train"):  # in this process, which imports PyTorch only once
        with pytest.raises(SystemExit) as end:
            main(filled)
        assert end.value.code == code
        says(message, capsys.readouterr().err)
        return
    done = run_cli(*filled, env={name: value.format(**files) for name, value in environment.items()})
    assert done.returncode == code, done
    says(message, done.stderr)


def test_a_busy_port(files: Files, run_cli: Callable[..., CompletedProcess[str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        done = run_cli("serve", files["gguf"], "--port", str(busy.getsockname()[1]))
    says("address already in use", done.stderr)


def test_a_missing_package(files: Files) -> None:
    program = "import sys; sys.modules['torch'] = None; from bitexport.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, "parity", files["sound"], files["gguf"]],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    says("needs the Python package torch", done.stderr)


def test_every_quoted_message_is_tried() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    quoted = [
        message
        for section in sections
        if "| message |" in section or "| status or message |" in section
        for message in re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
    ]
    tried = {message for message, *_ in CASES}
    tried |= {"address already in use", "needs the Python package torch"}
    assert len(quoted) == len(set(quoted)) > 20
    assert set(quoted) == tried | ELSEWHERE.keys()
    for where, part in ELSEWHERE.values():
        path = REPOSITORY / where
        tests = [path] if path.is_file() else sorted(path.glob("test_*.py"))
        assert any(part in test.read_text(encoding="utf-8") for test in tests), where
