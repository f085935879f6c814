"""The model card: facts of the file, figures that were measured of it, and blanks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitexport.bench import bench, compare
from bitexport.convert import convert
from bitexport.errors import UnsupportedError, UsageError
from bitexport.evaluation import evaluate
from bitexport.gguf.fingerprint import fingerprint
from bitexport.parity import parity
from bitexport.parity.embedding import embedding_parity
from bitexport.sharing import BLANK, card
from bitexport.sharing.measurements import readable_bytes
from tests.support.cli import one_line
from tests.support.embedding_models import embedding_checkpoint
from tests.support.foreign_files import foreign_file, split
from tests.support.gguf_files import changed, flip_one_trit, with_text
from tests.support.tiny_models import Shape

Made = Callable[..., Path]
Cli = Callable[..., Any]
SHAPE = Shape(hidden=256, ffn=512, layers=1, heads=2, kv_heads=1, vocab=400, context=64)


@pytest.fixture(scope="module")
def gguf(gguf_of: Made) -> Path:
    return gguf_of("packed-multiply", shape=SHAPE)


@pytest.fixture(scope="module")
def reports(gguf: Path, checkpoint_of: Made) -> dict[str, Any]:
    """Real documents of the three commands about ``gguf``."""
    checkpoint = checkpoint_of("packed-multiply", shape=SHAPE)
    text = "def f(x):\n    return x\n" * 8
    found = {
        "parity": parity(checkpoint, gguf, ["def f"], tokens=2, text=text),
        "bench": bench(gguf, threads=[1], prompt_tokens=[8], generated_tokens=[2], repetitions=1),
        "compare": compare(
            gguf, types=["f16"], threads=[1], prompt_tokens=[], generated_tokens=[2], rounds=1
        ),
        "eval": evaluate(checkpoint, student_gguf=gguf, text=text, max_tokens=0),
    }
    return {name: json.loads(json.dumps(report.to_json())) for name, report in found.items()}


def header(text: str) -> dict[str, Any]:
    _, found, _ = text.split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(found)
    return loaded


def test_the_facts_and_the_blanks(gguf: Path) -> None:
    made = card(gguf)
    assert made.blanks == ("license", "base_model", "measurements")
    assert header(made.text) == {
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "ternary", "bitnet", "i2-s", "bitexport"],
    }
    assert f"# license: {BLANK}, for example mit\n" in made.text
    assert f"# base_model: {BLANK}, OWNER/REPO of the model that was converted\n" in made.text
    assert f"    bitexport run {gguf.name} --prompt " in made.text
    assert f"\n{readable_bytes(gguf.stat().st_size)}; " in made.text
    assert "upstream llama.cpp lacks the tensor type I2_S and the architecture bitnet-b1.58" in made.text
    assert f"{BLANK}: nothing was measured for this card." in made.text


def test_filled_in(gguf: Path) -> None:
    made = card(gguf, license="no", base_model="acme/base", repo="me/tiny")
    assert made.blanks == ("measurements",)
    found = header(made.text)
    assert (found["license"], found["base_model"]) == ("no", "acme/base")  # not false, as bare YAML
    assert found["base_model_relation"] == "quantized"
    assert f"bitexport run me/tiny:{gguf.name} --prompt" in made.text


def test_what_the_file_says(gguf: Path, tmp_path: Path) -> None:
    named = with_text(gguf, tmp_path / "a.gguf", "general.name", "packed_multiply")
    assert "\n# packed_multiply\n" in card(named).text


def test_every_report(gguf: Path, reports: dict[str, Any]) -> None:
    text = card(gguf, reports=list(reports.values())).text
    assert reports["parity"]["verdict"] in text
    assert f"{reports['parity']['perplexity']['cpp']:.4f} in C++" in text
    (decode,) = [row for row in reports["bench"]["rows"] if row["test"] == "tg2"]
    if not decode["disturbed"]:
        assert f"| tg2 | 1 | {decode['tokens_per_second']:.2f} ± {decode['stddev']:.2f} |" in text
    assert reports["bench"]["cpu"] in text
    assert "| test | threads | type | size | tokens/s | this file is |" in text
    (column,) = [each for each in reports["eval"]["columns"] if each["kind"] == "gguf"]
    assert "|  | student-python | this file |" in text
    assert f"{column['text']['perplexity']:,.3f} |" in text
    assert "nothing was measured" not in text


def test_figures_of_another_file_are_refused(gguf: Path, reports: dict[str, Any], tmp_path: Path) -> None:
    """One trit apart, with the same name, the same size and the same header."""
    other = changed(gguf, tmp_path / gguf.name, "blk.0.attn_q.weight", flip_one_trit)
    assert other.stat().st_size == gguf.stat().st_size
    for report in reports.values():
        with pytest.raises(UsageError, match="measured another file than this one"):
            card(other, reports=[report])


def test_a_failed_parity_is_refused(gguf: Path, reports: dict[str, Any]) -> None:
    failed = {**reports["parity"], "passed": False}
    with pytest.raises(UsageError, match="parity failed"):
        card(gguf, reports=[failed])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "give what bitexport parity, bench or eval printed with --json"),
        ("[]", "is not a JSON object"),
        ('{"tensors": 1}', "is not a document of bitexport parity, bench or eval"),
        ('{"verdict": "x", "rows": []}', "does not say which file it measured"),
        ('{"columns": [{"kind": "float"}]}', "does not say which file it measured"),
        ("/dev/zero", "has more than"),
    ],
)
def test_documents_of_something_else(gguf: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    if content.startswith("/"):
        path.symlink_to(content)
    else:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        card(gguf, reports=[path])


def test_documents_of_other_versions(gguf: Path, reports: dict[str, Any]) -> None:
    wrong = {**reports["parity"], "greedy_match": "all"}
    with pytest.raises(UsageError, match=r"unexpected value .*another version of bitexport wrote it"):
        card(gguf, reports=[wrong])
    wrong = {**reports["parity"], "perplexity": {**reports["parity"]["perplexity"], "tokens": "many"}}
    with pytest.raises(UsageError, match="unexpected value"):
        card(gguf, reports=[wrong])
    wrong = {key: value for key, value in reports["bench"].items() if key != "cpu"}
    with pytest.raises(UsageError, match="lacks 'cpu', so another version"):
        card(gguf, reports=[wrong])


def test_disturbed_rows_are_left_out(gguf: Path, reports: dict[str, Any]) -> None:
    rows = [{**row, "disturbed": row["test"] == "tg2"} for row in reports["bench"]["rows"]]
    text = card(gguf, reports=[{**reports["bench"], "rows": rows}]).text
    assert "| pp8 |" in text
    assert "| tg2 |" not in text
    assert "1 test left out, because other programs disturbed the measurement" in text


def test_an_embedding_model(tmp_path: Path) -> None:
    checkpoint = embedding_checkpoint(tmp_path / "checkpoint")
    gguf = tmp_path / "m.gguf"
    convert(checkpoint, gguf, embed_type="f16")
    report = embedding_parity(checkpoint, gguf, ["a b"]).to_json()
    text = card(gguf, reports=[report]).text
    assert header(text)["pipeline_tag"] == "feature-extraction"
    assert 'bitexport embed m.gguf --text "Hello"' in text
    assert report["verdict"] in text


def test_a_split_file(gguf: Path, tmp_path: Path) -> None:
    parts = split(gguf, tmp_path / "model", 6)
    text = card(parts[0]).text
    assert f" in {len(parts)} files; " in text
    first = fingerprint(parts[0])
    with parts[-1].open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert fingerprint(parts[0]) != first


def test_a_file_for_upstream(checkpoint_of: Made, tmp_path: Path) -> None:
    checkpoint = checkpoint_of("packed-multiply", architecture="llama", tied=False)
    for kind, expected in (
        ("tq2_0", "Upstream llama.cpp runs it, too: it has the architecture (llama) and the tensor types."),
        ("i2_s", "upstream llama.cpp lacks the tensor type I2_S."),
    ):
        convert(checkpoint, tmp_path / f"{kind}.gguf", type=kind, embed_type="f16")
        assert expected in card(tmp_path / f"{kind}.gguf").text


def test_a_file_of_another_project(gguf_of: Made, tmp_path: Path) -> None:
    source = gguf_of("packed-multiply", architecture="llama", tied=False, shape=SHAPE)
    foreign_file(source, tmp_path / "x.gguf", "iq2_bn")
    with pytest.raises(UnsupportedError, match=r"convert the file first: bitexport convert x\.gguf"):
        card(tmp_path / "x.gguf")


def test_the_command(run_cli: Cli, gguf: Path, reports: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    path.write_text(json.dumps({"schema": 1, **reports["parity"]}))
    options = ("--report", path, "--license", "mit", "--base-model", "acme/base")
    done = run_cli("card", gguf, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == card(gguf, reports=[path], license="mit", base_model="acme/base").text
    target = tmp_path / "README.md"
    done = run_cli("card", gguf, "-o", target)
    assert (done.stdout, done.stderr) == (
        f"wrote {target}\n",
        "to fill in: license, base_model, measurements\n",
    )
    assert target.read_text() == card(gguf).text
    assert "exists; use --force to replace it" in one_line(run_cli("card", gguf, "-o", target), 1)
    done = run_cli("card", gguf, "-o", target, "--force", *options, "--json", "-q")
    assert json.loads(done.stdout)["card"] == target.read_text()
    assert done.stderr == ""


def test_the_command_measures(run_cli: Cli, gguf: Path) -> None:
    done = run_cli("card", gguf, "--bench", "-q")
    assert done.returncode == 0
    assert "Measured with `bitexport bench`." in done.stdout
