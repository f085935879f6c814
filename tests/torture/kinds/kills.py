"""Kills ``convert``, ``train`` and ``push`` at a random moment: nothing is half-written, the next works."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from bitexport.cli import main
from bitexport.convert import convert
from bitexport.train.config import TrainConfig
from bitexport.train.run_folder import last_checkpoint
from tests.support import hub as loopback
from tests.support.repository import REPOSITORY
from tests.support.tiny_models import Shape, tiny_checkpoint
from tests.torture.workers import GIB, TortureError, in_child
from tests.train.conftest import tiny_config

SHARE = 5
SECONDS = 120
#: Training runs PyTorch.
MEMORY = 8 * GIB

_OLD = b"what was here before"
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: How long a command takes, on a busy machine; later is after its end.
_SECONDS = {"push": 6.0, "train": 12.0}


def prepare(folder: Path) -> None:
    source = tiny_checkpoint(folder / "source", shape=Shape(hidden=512, ffn=1024, layers=3))
    start = time.monotonic()
    convert(source, folder / "complete.gguf")
    (folder / "seconds").write_text(str(time.monotonic() - start))
    small = Shape(hidden=256, ffn=256, layers=1, heads=2, kv_heads=1)
    convert(tiny_checkpoint(folder / "small", shape=small), folder / "small.gguf", embed_type="f16")


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:
    kill = chance.choices((_kill_convert, _kill_push, _kill_train), (8, 3, 1))[0]
    return kill(chance, prepared, folder)


def _kill_convert(chance: random.Random, prepared: Path, folder: Path) -> str:
    output = folder / "out.gguf"
    old = _OLD if chance.random() < 0.5 else None
    if old:
        output.write_bytes(old)
    # the first conversion of a process also imports
    longest = 1.5 * float((prepared / "seconds").read_text())
    command = ["convert", str(prepared / "source"), str(output), "--force", "--quiet"]
    number = _killed(lambda: _main(command), chance, longest)
    content = output.read_bytes() if output.exists() else None
    complete = (prepared / "complete.gguf").read_bytes()
    if content not in (old, complete):
        raise TortureError(f"{len(content or b'')} bytes of {len(complete)} under the output's name")
    left = [file.name for file in folder.iterdir() if file not in (output, folder / "stderr")]
    if left and number in (signal.SIGINT, signal.SIGTERM):
        raise TortureError(f"{number.name} left {left}")
    if in_child(lambda: convert(prepared / "source", output, force=True)) != 0:
        raise TortureError("the next conversion failed")
    found = "complete" if content == complete else "old" if old else "nothing"
    return f"worked: convert, then the file is {found}"


def _kill_push(chance: random.Random, prepared: Path, folder: Path) -> str:
    file = prepared / "small.gguf"
    with loopback.serve() as hub:
        environment = loopback.environment(hub, folder / "home", HF_TOKEN=loopback.TOKEN)
        command = ["push", str(file), "me/tiny", "--quiet"]

        def push() -> NoReturn:
            # a new Python, because huggingface_hub reads the hub's address when it is imported
            program = [sys.executable, "-m", "bitexport", *command]
            os.chdir(REPOSITORY)
            os.execve(sys.executable, program, {**os.environ, **environment})

        _killed(push, chance, _SECONDS["push"], (signal.SIGKILL, signal.SIGTERM))
        repository = hub.repositories.get("me/tiny")
        pushed = [found for found in (repository.commits.values() if repository else ()) if found]
        for found in pushed:
            if found.get(file.name, file.read_bytes()) != file.read_bytes():
                raise TortureError("the repository has half of a file")
        if _run(push, folder) != 0:
            raise TortureError(f"the next push failed: {_last_line(folder)}")
        repository = hub.repositories["me/tiny"]
        if repository.commits[repository.refs["main"]].get(file.name) != file.read_bytes():
            raise TortureError("the next push did not bring the file")
    return f"worked: push, {'after' if pushed else 'before'} its commit"


def _kill_train(chance: random.Random, prepared: Path, folder: Path) -> str:  # noqa: ARG001
    config = tiny_config(folder, threads=1)
    path = folder / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    command = ["train", str(path), "--stage", "pretrain"]
    resumed = 0
    for _ in range(chance.choice((1, 1, 2))):
        arguments = [*command, *_resume(config)]
        _killed(partial(_main, arguments), chance, _SECONDS["train"])
        resumed += bool(_resume(config))
    _check_models(config)
    arguments = [*command, *_resume(config)]
    if _run(partial(_main, arguments), folder) != 0:
        raise TortureError(f"the next run failed: {_last_line(folder)}")
    _check_models(config)
    if not (Path(config.run_dir) / "pretrain" / "model" / "model.safetensors").is_file():
        raise TortureError("the next run left no model")
    return f"worked: train, {'resumed' if resumed else 'from the beginning'}"


def _resume(config: TrainConfig) -> list[str]:
    """``--resume``, if there is something to continue."""
    stage = Path(config.run_dir) / "pretrain"
    return ["--resume"] if stage.exists() and (last_checkpoint(stage) or (stage / "model").exists()) else []


def _check_models(config: TrainConfig) -> None:
    """Check that every model under its final name can be read."""
    from safetensors.torch import load_file

    for file in Path(config.run_dir).rglob("model/model.safetensors"):
        load_file(file)


def _killed(
    work: Callable[[], int],
    chance: random.Random,
    longest: float,
    signals: Sequence[signal.Signals] = tuple(_SIGNALS),
) -> signal.Signals:
    """Do something in a fork and send it a signal at a random moment; returns the signal."""
    number = chance.choice(signals)
    moment = chance.random() * longest
    pid = _fork(work)
    time.sleep(moment)
    os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # a command that ended before, or that was interrupted
    if code not in (0, 130, 143, -number):
        raise TortureError(f"{number.name} ended it with code {code}")
    return number


def _run(work: Callable[[], int], folder: Path) -> int:
    """Do something in a fork; stderr goes to a file."""

    def quietly() -> int:
        os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
        return work()

    return os.waitstatus_to_exitcode(os.waitpid(_fork(quietly), 0)[1])


def _last_line(folder: Path) -> str:
    return ((folder / "stderr").read_text(errors="replace").splitlines() or [""])[-1]


def _main(command: Sequence[str]) -> int:
    try:
        main(list(command))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _fork(work: Callable[[], int]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 4
        try:
            code = work()
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid
