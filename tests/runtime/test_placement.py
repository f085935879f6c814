"""Layers are divided as evenly as memory allows, and numbers that do not fit are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.errors import UnsupportedError, UsageError
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.runtime.placement import Machine, Placement, place
from bitexport.runtime.remote import parse_workers
from tests.support.tiny_models import Shape

LAYERS = 6
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def file(gguf_of: Callable[..., Path]) -> GGUFFile:
    return read_gguf(gguf_of("packed-multiply", shape=Shape(layers=LAYERS)))


def machines(*free: int | None) -> list[Machine]:
    return [Machine(f"machine {index}", bytes_) for index, bytes_ in enumerate(free)]


@pytest.mark.parametrize(
    ("count", "expected"), [(2, (3, 3)), (3, (2, 2, 2)), (4, (1, 1, 2, 2)), (6, (1, 1, 1, 1, 1, 1))]
)
def test_layers_are_divided_evenly(file: GGUFFile, count: int, expected: tuple[int, ...]) -> None:
    assert place(file, machines(*[PLENTY] * count), [], 64).layers == expected


def test_a_machine_with_little_memory_gets_few_layers(file: GGUFFile) -> None:
    layer = sum(tensor.nbytes for tensor in file.tensors if tensor.name.startswith("blk.0."))
    small = (64 << 20) + 2 * layer
    assert place(file, machines(None, PLENTY, small), [], 0).layers == (2, 2, 2)
    assert place(file, machines(PLENTY, small), [], 0).layers == (4, 2)
    assert place(file, machines(PLENTY, small), [], 100_000).layers == (5, 1)


def test_too_little_memory_is_refused_with_what_there_is(file: GGUFFile) -> None:
    with pytest.raises(
        UnsupportedError, match=r"needs about .* machine 0 0.00 GiB, machine 1 0.00 GiB; add a"
    ):
        place(file, machines(1000, 1000), [], 0)


def test_given_numbers_are_taken(file: GGUFFile) -> None:
    assert place(file, machines(0, 0, 0), [1, 2, 3], 64).layers == (1, 2, 3)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([3, 3], r"3,3 are for 2 machines, but there are 3"),
        ([1, 2, 4], r"1,2,4, 7 together; expected 6"),
        ([0, 3, 3], r"1 or more for each machine"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(file: GGUFFile, layers: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        place(file, machines(PLENTY, PLENTY, PLENTY), layers, 64)


def test_more_machines_than_layers_are_refused(file: GGUFFile) -> None:
    with pytest.raises(UsageError, match="has 6 layers, too few for 7 machines"):
        place(file, machines(*[PLENTY] * 7), [], 64)


def test_llama_cpp_counts_the_head_on_the_last_worker() -> None:
    placement = Placement((2, 3, 4))
    assert placement.n_gpu_layers == 8
    assert placement.tensor_split == [3.0, 5.0]


def test_addresses_have_a_default_port() -> None:
    assert parse_workers("10.0.0.2, node-3:5000") == ["10.0.0.2:50052", "node-3:5000"]
    assert parse_workers(["a", "b"]) == ["a:50052", "b:50052"]


@pytest.mark.parametrize("address", ["", "a:b", "a:0", "a:65536", "[::1]:5000", "a b", "http://a:1", "a,,b"])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="has no address such as"):
        parse_workers(address)


def test_the_same_worker_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="a:50052 is given twice"):
        parse_workers("a,a:50052")
