"""Models that are split into several files are read and run as one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

import bitexport
from bitexport.bench.comparison import _twins
from bitexport.convert import convert
from bitexport.errors import GGUFError, OutputError
from bitexport.gguf.embeddings import read_embeddings
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.splits import check_tensors
from bitexport.inspect import inspect
from bitexport.parity import parity
from bitexport.progress import ignore
from bitexport.runtime.session import Session
from tests.support.foreign_files import split, split_by_gguf_py
from tests.support.gguf_files import tensors_of
from tests.support.tiny_models import Shape

SHAPE = Shape(hidden=256, ffn=512, layers=1, heads=2, kv_heads=1, vocab=400, context=64)


@pytest.fixture(scope="module")
def whole(gguf_of: Callable[..., Path]) -> Path:
    return gguf_of("packed-multiply", shape=SHAPE)


@pytest.fixture(scope="module")
def parts(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return split(whole, tmp_path_factory.mktemp("split") / "model", 6)


@pytest.fixture
def copies(parts: list[Path], tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(part, tmp_path)) for part in parts]


def test_the_gguf_package_splits_alike(whole: Path, tmp_path: Path) -> None:
    convert(whole, tmp_path / "whole.gguf", type="tq2_0")
    theirs = split_by_gguf_py(tmp_path / "whole.gguf", tmp_path / "theirs", 6)
    ours = split(tmp_path / "whole.gguf", tmp_path / "ours", 6)
    assert [path.name[6:] for path in theirs] == [path.name[4:] for path in ours]
    assert tensors_of(theirs[0]) == tensors_of(ours[0]) == tensors_of(tmp_path / "whole.gguf")
    convert(theirs[0], tmp_path / "joined.gguf", type="tq2_0")
    assert tensors_of(tmp_path / "joined.gguf") == tensors_of(tmp_path / "whole.gguf")
    with Session(theirs[0], n_ctx=16) as session, Session(tmp_path / "whole.gguf", n_ctx=16) as other:
        np.testing.assert_array_equal(session.logits([5, 6, 7]), other.logits([5, 6, 7]))


def test_read_as_one(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    assert len(parts) == 3
    file = read_gguf(parts[0])
    assert file.parts == tuple(parts)
    assert tensors_of(parts[0]) == tensors_of(whole)
    report, other = inspect(parts[0], health=True), inspect(whole, health=True)
    assert (report.tensors, report.types, report.health) == (other.tensors, other.types, other.health)
    np.testing.assert_array_equal(read_embeddings(parts[0]).embedding, read_embeddings(whole).embedding)

    done = convert(parts[0], tmp_path / "joined.gguf", type="i2_s")
    assert done.changed == [
        "split.no 0 -> removed",
        "split.count 3 -> removed",
        f"split.tensors.count {len(file.tensors)} -> removed",
    ]
    # the same bytes as if it had never been split
    assert (tmp_path / "joined.gguf").read_bytes() == whole.read_bytes()


def test_runs_as_one(whole: Path, parts: list[Path], checkpoint_of: Callable[..., Path]) -> None:
    with Session(parts[0], n_ctx=16) as session, Session(whole, n_ctx=16) as other:
        assert session.weight_bytes == other.weight_bytes
        np.testing.assert_array_equal(session.logits([5, 6, 7]), other.logits([5, 6, 7]))
    bitexport.load(parts[0], n_ctx=16).close()
    report = parity(checkpoint_of("packed-multiply", shape=SHAPE), parts[0], ["def f(x):"])
    assert report.passed


def test_links_to_the_parts(parts: list[Path], tmp_path: Path) -> None:
    """As in a hub's cache, where the files themselves are named after their contents."""
    for number, part in enumerate(parts):
        blob = Path(shutil.copy(part, tmp_path / f"blob{number}"))
        (tmp_path / part.name).symlink_to(blob)
    first = tmp_path / parts[0].name
    assert tensors_of(first) == tensors_of(parts[0])
    with Session(first, n_ctx=16) as session:
        assert session.n_vocab == 400
    (tmp_path / "twins").mkdir()
    twins = _twins(read_gguf(first), ["f16"], tmp_path / "twins", ignore)
    assert [tensor.name for tensor in read_gguf(twins["f16"]).tensors] == list(tensors_of(first))


def test_the_command_line(
    parts: list[Path], run_cli: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_cli(
        "bench",
        parts[0],
        "--compare",
        "f16",
        "--prompt-tokens",
        "8",
        "-n",
        "2",
        "-r",
        "1",
        "--keep",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


OPENERS: tuple[Callable[[Path], object], ...] = (read_gguf, Session, bitexport.load, inspect)


def refused(path: Path, message: str) -> None:
    for opener in OPENERS:
        with pytest.raises(GGUFError, match=message):
            opener(path)
    with pytest.raises(GGUFError, match=message):
        convert(path, path.with_name("out.gguf"))
    assert not path.with_name("out.gguf").exists()


def test_a_missing_part(copies: list[Path]) -> None:
    copies[2].unlink()
    refused(copies[0], r"the first of 3 parts .* 1 of them are missing: model-00003-of-00003\.gguf; put")


def test_another_part_given_first(copies: list[Path]) -> None:
    refused(copies[1], r"model-00002-of-00003\.gguf is part 2 of 3 .* give the first part: model-00001")
    read_gguf(copies[1].with_name("model-00001-of-00003.gguf"))  # the advice
    renamed = copies[1].rename(copies[1].with_name("second.gguf"))
    refused(renamed, r"second\.gguf is part 2 of 3 of a model; give the first part: the first one")


def test_a_renamed_first_part(copies: list[Path]) -> None:
    renamed = copies[0].rename(copies[0].with_name("m.gguf"))
    refused(renamed, r"m\.gguf is the first of 3 parts .* ends in -00001-of-00003\.gguf: rename it as it was")
    renamed.rename(copies[0])
    read_gguf(copies[0])  # the advice


def test_swapped_and_foreign_parts(copies: list[Path], tmp_path: Path, whole: Path) -> None:
    swapped = copies[1].rename(tmp_path / "spare")
    copies[2].rename(copies[1])
    swapped.rename(copies[2])
    refused(copies[0], r"00002-of-00003\.gguf has the name of part 2 of 3, but says that it is part 3 of 3")
    shutil.copy(whole, copies[1])
    refused(copies[0], r"00002-of-00003\.gguf has the name of part 2 of 3, but says nothing about it")


def test_a_part_of_another_model_with_as_many_parts(copies: list[Path], tmp_path: Path, whole: Path) -> None:
    other = split(whole, tmp_path / "other", 5)
    assert len(other) == 3
    shutil.copy(other[1], copies[1])
    other[1].unlink()
    refused(copies[0], r"tensor '.*' appears in 2 parts, so one of them belongs to another model")


def test_too_few_tensors() -> None:
    message = r"have 2 tensors; expected 5 \(split\.tensors\.count\): a part belongs to another model"
    with pytest.raises(GGUFError, match=message):
        check_tensors(Path("x"), {"split.tensors.count": 5}, ["a", "b"])


def test_convert_does_not_write_over_a_part(copies: list[Path]) -> None:
    before = copies[2].read_bytes()
    with pytest.raises(OutputError, match="is the file being converted"):
        convert(copies[0], copies[2], force=True, type="tq2_0")
    assert copies[2].read_bytes() == before
