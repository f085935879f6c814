"""Sessions give the logits of every position, and errors name what is wrong with a file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import bitexport
from bitexport.errors import GGUFError, UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.session import Session
from tests.support.decoding import greedy

TEXT = "def add(left, right):\n    return left + right\n"


@pytest.fixture(scope="module")
def model(gguf_of: Callable[..., Path]) -> Path:
    return gguf_of("packed-multiply")


@pytest.fixture(scope="module")
def session(model: Path) -> Iterator[Session]:
    with Session(model, n_ctx=256, n_threads=2) as opened:
        yield opened


def test_logits_of_every_position(session: Session) -> None:
    ids = session.tokenize(TEXT)
    logits = session.logits(ids)
    assert logits.shape == (len(ids), session.n_vocab)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_a_prefix_has_the_same_logits(session: Session) -> None:
    ids = session.tokenize(TEXT)
    np.testing.assert_allclose(session.logits(ids[:5]), session.logits(ids)[:5], rtol=0, atol=0.05)


def test_feeding_in_chunks_equals_feeding_at_once(session: Session) -> None:
    ids = session.tokenize(TEXT)
    whole = session.logits(ids)
    session.clear()
    session.feed(ids[:7])
    np.testing.assert_allclose(session.feed(ids[7:]), whole[-1], rtol=0, atol=0.05)


def test_greedy_takes_the_largest_logit(session: Session) -> None:
    ids = session.tokenize(TEXT)
    tokens = greedy(session, ids, 4)
    assert len(tokens) == 4
    assert tokens[0] == session.logits(ids)[-1].argmax()
    assert tokens[1] == session.logits([*ids, tokens[0]])[-1].argmax()


@pytest.mark.parametrize("text", [TEXT, "", " ", "naïve 👩‍👩‍👧 ひらがな\n\n\t", "<|end_of_text|>x"])
def test_joined_pieces_are_the_text(session: Session, text: str) -> None:
    begin, *ids = session.tokenize(text)
    assert session.piece(begin) == b"<|begin_of_text|>"
    assert b"".join(map(session.piece, ids)).decode() == text


def test_text_longer_than_the_context(session: Session) -> None:
    with pytest.raises(UsageError, match="257 tokens do not fit a context of 256"):
        session.logits([5] * 257)


@pytest.mark.parametrize(("ids", "message"), [([], "no tokens"), ([3, 99999], "outside"), ([-1], "outside")])
def test_bad_tokens(session: Session, ids: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        session.logits(ids)


def test_load_gives_an_ordinary_llama(model: Path, session: Session) -> None:
    import llama_cpp

    llama = bitexport.load(model, n_ctx=64)
    assert isinstance(llama, llama_cpp.Llama)
    ids = session.tokenize(TEXT)[:20]
    llama.eval(ids)
    chosen = next(llama.generate(ids, temp=0.0, reset=True))
    # half- and full-precision caches choose the same token unless two logits are nearly equal
    logits = session.logits(ids)[-1]
    assert logits[chosen] > logits.max() - 0.5


def test_nothing_is_printed(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Session(model, n_ctx=64) as opened:
        opened.logits([1, 2, 3])
    bitexport.load(model, n_ctx=64).close()
    assert capfd.readouterr() == ("", "")


def test_verbose_shows_the_log(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bitexport.load(model, n_ctx=64, verbose=True).close()
    assert "bitnet-b1.58" in capfd.readouterr().err
    bitexport.load(model, n_ctx=64).close()  # quiet again, for the tests that follow
    assert capfd.readouterr().err == ""


def _damaged(model: Path, target: Path, change: Callable[[bytearray, int, int], None]) -> Path:
    """A copy after ``change``, which gets the offset and length of the first I2_S tensor."""
    tensor = next(tensor for tensor in read_gguf(model).tensors if tensor.type.name == "i2_s")
    data = bytearray(model.read_bytes())
    change(data, tensor.offset, tensor.nbytes)
    target.write_bytes(data)
    return target


def _code_3(data: bytearray, offset: int, _length: int) -> None:
    data[offset + 5] |= 0b11000000


def _scale(value: float) -> Callable[[bytearray, int, int], None]:
    def change(data: bytearray, offset: int, length: int) -> None:
        struct.pack_into("<f", data, offset + length - 32, value)

    return change


def _cut(data: bytearray, _offset: int, _length: int) -> None:
    del data[-1000:]


def _other_architecture(data: bytearray, _offset: int, _length: int) -> None:
    data[:] = data.replace(b"bitnet-b1.58", b"bitnet-b9.99")


def _type_number(data: bytearray, _offset: int, _length: int) -> None:
    """Change the number of rows in the tensor's header entry, so that the size does not match."""
    name = b"blk.0.attn_q.weight"
    at = data.index(name) + len(name) + 4 + 8
    data[at : at + 8] = struct.pack("<Q", struct.unpack("<Q", data[at : at + 8])[0] + 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_code_3, "'blk.0.attn_q.weight' holds code 3 at element 5"),
        (_scale(0.0), "'blk.0.attn_q.weight' has scale 0.0"),
        (_scale(float("nan")), "'blk.0.attn_q.weight' has scale nan"),
        (_scale(float("inf")), "'blk.0.attn_q.weight' has scale inf"),
        (_scale(-0.5), "'blk.0.attn_q.weight' has scale -0.5"),
        (_cut, "ends at byte"),
        (_other_architecture, "general.architecture is 'bitnet-b9.99'; expected one that"),
        (_type_number, "blk.0.attn_"),
    ],
)
@pytest.mark.parametrize("opener", [Session, bitexport.load])
def test_damaged_file(
    model: Path,
    tmp_path: Path,
    opener: Callable[[Path], object],
    change: Callable[[bytearray, int, int], None],
    message: str,
) -> None:
    bad = _damaged(model, tmp_path / "bad.gguf", change)
    with pytest.raises(GGUFError, match=r"bad\.gguf") as caught:
        opener(bad)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="no such file"):
        Session(tmp_path / "none.gguf")


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(GGUFError, match="not GGUF"):
        bitexport.load(tmp_path / "x.gguf")


def test_a_good_file_loads_after_a_bad_one(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GGUFError):
        Session(_damaged(model, tmp_path / "bad.gguf", _code_3))
    with Session(model, n_ctx=64) as opened:
        assert len(greedy(opened, [1, 2], 2)) == 2
