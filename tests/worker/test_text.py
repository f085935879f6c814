"""Several machines compute what one does: the same text, from every command and every type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import bitexport
from bitexport.bench import bench
from bitexport.chat import Conversation
from bitexport.convert import convert
from bitexport.errors import UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.completion import Completion, Sampling
from bitexport.runtime.remote import Workers
from bitexport.serve import Server
from tests.support.api_client import Client
from tests.support.repository import REPOSITORY
from tests.support.workers import WorkerProcess

PROMPT = "def add(left, right):\n    return left"
GREEDY = Sampling(temperature=0)


def text(path: Path, **options: Any) -> str:
    return "".join(Completion(path, PROMPT, sampling=GREEDY, max_tokens=24, n_ctx=128, threads=1, **options))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shipped") / "tiny-python.gguf"
    convert(REPOSITORY / "examples" / "tiny-python", made)
    return made


def test_one_worker_gives_the_same_text(model: Path, one: WorkerProcess) -> None:
    assert text(model, workers=[one.address]) == text(model)


def test_two_workers_give_the_same_text(model: Path, one: WorkerProcess, other: WorkerProcess) -> None:
    workers = f"{one.address},{other.address}"
    assert text(model, workers=workers, layers=[1, 1, 2]) == text(model)
    assert text(model, workers=workers, layers=[2, 1, 1]) == text(model)


def test_the_shipped_model_gives_the_same_text(shipped: Path, one: WorkerProcess) -> None:
    assert text(shipped, workers=[one.address]) == text(shipped)


@pytest.mark.parametrize("type_name", ["tq1_0", "tq2_0", "q2_0"])
def test_other_types_give_the_same_text(
    type_name: str, shipped: Path, one: WorkerProcess, tmp_path: Path
) -> None:
    made = tmp_path / f"{type_name}.gguf"
    convert(shipped, made, type=type_name)
    assert text(made, workers=[one.address]) == text(made)


def test_a_model_loads_again_and_beside_another(model: Path, one: WorkerProcess) -> None:
    first = bitexport.load(model, n_ctx=64, workers=[one.address])
    second = bitexport.load(model, n_ctx=64, workers=[one.address], layers=[3, 1])
    alone = bitexport.load(model, n_ctx=64)
    texts = [
        loaded(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"] for loaded in (first, second, alone)
    ]
    first.close()
    again = second(PROMPT, max_tokens=8, temperature=0)["choices"][0]["text"]
    second.close()
    assert texts == [texts[2]] * 3
    assert again == texts[2]


def test_a_conversation_gives_the_same_answers(model: Path, one: WorkerProcess) -> None:
    def answers(**options: Any) -> list[str]:
        with Conversation(
            model, template=False, sampling=GREEDY, max_tokens=6, n_ctx=128, threads=1, **options
        ) as conversation:
            return ["".join(conversation.say(message)) for message in ("def a():", "def b():")]

    assert answers(workers=[one.address]) == answers()


def test_a_server_gives_the_same_text(model: Path, one: WorkerProcess, other: WorkerProcess) -> None:
    def served(**options: Any) -> tuple[tuple[int, ...], str]:
        with Server(model, port=0, slots=2, ctx=128, threads=1, **options) as server:
            return server.plan.layers, Client(server.port).complete(PROMPT, 24)["choices"][0]["text"]

    layers, together = served(workers=[one.address, other.address])
    assert layers == (1, 1, 2)
    assert together == served()[1]


def test_bench_names_the_machines(
    model: Path, one: WorkerProcess, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    report = bench(
        model, threads=[1], prompt_tokens=[16], generated_tokens=[4], repetitions=1, workers=one.address
    )
    assert [(machine.name, machine.layers) for machine in report.machines] == [
        ("this machine", 2),
        (one.address, 2),
    ]
    assert all(row.percent_of_limit is None for row in report.rows)
    done = run_cli(
        "bench", model, "-t", "1", "--prompt-tokens", "8", "-n", "0", "-r", "1", "--workers", one.address
    )
    assert "| machines |" in done.stdout
    assert "over 2 machines, one after the other for each token:" in done.stdout
    assert "%" not in done.stdout


def test_json_has_the_layers(
    model: Path, one: WorkerProcess, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    done = run_cli(
        "run", model, "-p", PROMPT, "-n", "4", "--workers", one.address, "--layers", "1,3", "--json"
    )
    assert json.loads(done.stdout)["layers"] == [1, 3]


def test_layers_without_workers_are_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="there are none; give workers"):
        bitexport.load(model, layers=[1, 2])


def test_the_worker_has_its_layers_and_gives_their_memory_back(model: Path, one: WorkerProcess) -> None:
    layers = {f"blk.{number}." for number in (1, 2, 3)}
    stored = sum(
        tensor.nbytes for tensor in read_gguf(model).tensors if any(map(tensor.name.startswith, layers))
    )
    loaded = bitexport.load(model, n_ctx=64, workers=[one.address], layers=[1, 3])
    loaded(PROMPT, max_tokens=2)
    (state,) = loaded.workers.states()
    assert state.threads == 1
    assert 0.7 * stored < state.total_bytes - state.free_bytes < 64 << 20
    loaded.close()
    workers = Workers([one.address])
    (state,) = workers.states()
    workers.close()
    assert state.free_bytes == state.total_bytes
