"""``parity --report`` and ``--plot``: one page without external resources, and a figure."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from bitexport.errors import OutputError
from bitexport.parity import parity
from bitexport.parity.details import LogitDetails
from bitexport.parity.figures import depth
from bitexport.parity.page import page
from bitexport.parity.report import ParityReport
from bitexport.system.files import check_folder, write_atomically
from tests.support.gguf_files import changed, invert_scale, zero

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
HOSTILE = '<script>alert(1)</script> & "quoted" <b>\u202e</b>'
PROMPTS = ["def add(left, right):\n    return left + right\n", HOSTILE]


@pytest.fixture(scope="module")
def bad(checkpoint_of: Maker, gguf_of: Maker, tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    file = tmp_path_factory.mktemp("bad") / "bad.gguf"
    changed(gguf_of("packed-multiply"), file, "blk.1.ffn_down.weight", invert_scale)
    checkpoint = checkpoint_of("packed-multiply")
    return parity(checkpoint, file, PROMPTS, tokens=4, layers=True, details=True)


class Page(HTMLParser):
    """Collects tags in order, texts and addresses; fails on a tag that is not closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page(bad: ParityReport) -> None:
    text = page(bad, Path("a<b>/model"), Path("dir/<i>.gguf"))
    found = Page(text)
    assert "script" not in found.tags
    assert "b>/model" in found.words
    assert HOSTILE in found.words
    assert "Parity of <i>.gguf" in found.words
    assert "First step that diverges" not in found.words  # it is in the picture, and as a sentence here:
    assert "The first step that diverges is ffn_out-1" in found.words
    assert "FAIL" in found.words
    for heading in ("Summary", "Prompts", "Logits", "Depth", "Where the most likely token differs"):
        assert heading in found.words
    # no external resources
    assert len(found.addresses) == 2
    assert all(address.startswith("data:image/") for address in found.addresses)
    assert not re.search(r"https?:|url\(|@import", re.sub(r'src="[^"]*"', "", text).replace("http-equiv", ""))
    assert "default-src 'none'" in text


def test_its_pictures(bad: ParityReport) -> None:
    kinds = {}
    for address in Page(page(bad, Path("c"), Path("f"))).addresses:
        kind, _, encoded = address.partition(";base64,")
        kinds[kind] = base64.b64decode(encoded)
    assert Image.open(io.BytesIO(kinds["data:image/png"])).size == (650, 650)
    assert b"<svg" in kinds["data:image/svg+xml"]


def test_where_the_most_likely_token_differs(bad: ParityReport) -> None:
    assert bad.details is not None
    assert bad.details.judged.differing == round((1 - bad.judged.top1_agreement) * bad.judged.positions)
    assert bad.details.plain.differing == round((1 - bad.plain.top1_agreement) * bad.plain.positions)
    first = bad.details.judged.differences[0]
    assert first.python[0] != first.cpp[0]
    assert len(first.python) == len(first.cpp) == 5
    assert [choice.probability for choice in first.python] == sorted(
        (choice.probability for choice in first.python), reverse=True
    )
    assert f"after token {first.position}:" in page(bad, Path("c"), Path("f"))


def test_differences_by_hand() -> None:
    details = LogitDetails(lambda ids: " ".join(map(str, ids)))
    python = np.array([[0, 1, 2, 3, 4, 5.0], [5, 4, 3, 2, 1, 0]], np.float32)
    cpp = np.array([[0, 1, 2, 3, 4, 5.0], [4, 5, 3, 2, 1, 0]], np.float32)
    details.add(0, [7, 8], python, cpp)
    assert (details.differing, details.positions) == (1, 2)
    (found,) = details.differences
    assert (found.position, found.context) == (1, "7 8")
    assert [choice.text for choice in found.python] == ["0", "1", "2", "3", "4"]
    assert [choice.text for choice in found.cpp] == ["1", "0", "2", "3", "4"]
    assert found.python[0].probability == pytest.approx(np.exp(5) / np.exp(np.arange(6)).sum())
    sample = details.pairs[0]
    assert set(sample[0]) <= set(range(6))
    assert (sample[0] == sample[1]).sum() >= 200  # the rows that agree


def test_a_good_file_and_plain(checkpoint_of: Maker, gguf_of: Maker) -> None:
    checkpoint, file = checkpoint_of("packed-multiply"), gguf_of("packed-multiply")
    report = parity(checkpoint, file, PROMPTS, align=False, layers=True, details=True)
    text = Page(page(report, checkpoint, file)).words
    assert "PASS" in text
    assert "No step diverges" in text
    bare = parity(checkpoint, file, PROMPTS)
    with pytest.raises(ValueError, match="no details"):
        page(bare, checkpoint, file)


def test_a_picture_of_zeros(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path) -> None:
    """Steps whose values are all zero have no cosine; the figure is drawn all the same."""
    file = changed(gguf_of("packed-multiply"), tmp_path / "bad.gguf", "blk.0.attn_sub_norm.weight", zero)
    report = parity(checkpoint_of("packed-multiply"), file, PROMPTS[:1], layers=True)
    assert report.layers is not None
    assert Image.open(io.BytesIO(depth(report.layers))).size == (1300, 832)


def test_the_command(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "r.html").write_text("before")
    command = ("parity", checkpoint_of(), gguf_of(), "--prompt", PROMPTS[0], "--tokens", "0", "--json")
    done = run_cli(*command, "--report", out / "r.html", "--plot", out / "p.png")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"]["first"] is None
    assert sorted(path.name for path in out.iterdir()) == ["p.png", "r.html"]
    assert "PASS" in Page((out / "r.html").read_text()).words
    with Image.open(out / "p.png") as picture:
        assert picture.format == "PNG"
    early = run_cli(*command, "--report", tmp_path / "none" / "r.html")
    assert early.returncode == 1
    assert "does not exist; create it first" in early.stderr
    early = run_cli(*command, "--plot", tmp_path / "p.jpg")
    assert early.returncode == 2
    assert "must end in .png or .svg" in early.stderr


def test_without_matplotlib(checkpoint_of: Maker, gguf_of: Maker, tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module\", name='matplotlib')")
    done = run_cli(
        "parity", checkpoint_of(), gguf_of(), "--plot", tmp_path / "p.png", env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 1
    assert "pip install 'bitexport[plot]'" in done.stderr
    assert done.stdout == ""


def test_atomic_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"one")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def fails(_self: Path, _target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OutputError, match="no space left"):
        write_atomically(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="is a folder"):
        check_folder(tmp_path)


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask
