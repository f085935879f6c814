"""examples/study: its data do not leak, settings are chosen on validation pairs, and the tables say so."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.repository import REPOSITORY

FOLDER = REPOSITORY / "examples" / "study"
SECTIONS = ("libs", "doc", "python")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds its folder
    return runpy.run_path(str(FOLDER / "study.py"))


@pytest.fixture
def data() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "study_data.py"))


def write_lists(folder: Path, sources: int = 400) -> None:
    """Package lists: of every source two packages, with one description or two."""
    packages, english, french = [], [], []
    for number in range(sources):
        for part in ("first", "second"):
            text = (
                f"title of {spelled(number)}\n about the {part if number % 3 else 'only'} part\n .\n The end."
            )
            digest = f"{number}{part if number % 3 else ''}"
            lines = [f"Package: p{number}-{part}", f"Source: s{number} (1.0)"]
            lines += [f"Section: contrib/{SECTIONS[number % 3]}", f"Description-md5: {digest}"]
            packages.append("\n".join(lines))
            english.append(f"Package: p{number}\nDescription-md5: {digest}\nDescription-en: {text}")
            french.append(
                f"Package: p{number}\nDescription-md5: {digest}\nDescription-fr: titre {number}\n mot"
            )
    for name, stanzas in (("Packages", packages), ("i18n_Translation-en", english)):
        (folder / f"main_{name}").write_text("\n\n".join(stanzas) + "\n")
    (folder / "main_i18n_Translation-fr").write_text("\n\n".join(french) + "\n")


def spelled(number: int) -> str:
    """In letters: numbers would all be the same key."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def test_packages_of_one_source_are_on_one_side(data: dict[str, Any], tmp_path: Path) -> None:
    write_lists(tmp_path)
    english = data["descriptions"](tmp_path, "en")
    assert english["1first"] == "title of b\nabout the first part\nThe end."
    listed = data["packages"](tmp_path)
    assert (listed[0].source, listed[0].section) == ("s0", "libs")
    train, held_out = data["split_packages"](listed, english)
    assert len(train) + len(held_out) == len({*english.values()})  # every text once
    sources = [{pair.source.split("\n")[0] for pair in side} for side in (train, held_out)]
    assert not sources[0] & sources[1]
    assert {pair.target for pair in held_out} == set(SECTIONS)


def test_the_files_of_a_task(data: dict[str, Any], tmp_path: Path) -> None:
    write_lists(tmp_path)
    data["prepare"]("sections", tmp_path / "data", "", tmp_path)
    found = {
        name: [json.loads(line) for line in (tmp_path / "data" / f"{name}.jsonl").read_text().splitlines()]
        for name in data["FILES"]
    }
    assert len(found["tenth"]) == len(found["all"]) // 10
    assert found["tenth"] == found["all"][: len(found["tenth"])]
    assert found["validation"][0].keys() == {"prompt", "answer"}
    trained = {row["source"] for row in found["all"]}
    for row in found["validation"]:
        text = row["prompt"].removeprefix("<|description|>").removesuffix("<|section|>")
        assert text not in trained
        assert {"text": text} not in found["corpus"]


def test_a_missing_list_is_named(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no \*_Packages\*; fetch the lists with apt-get update"):
        data["packages"](tmp_path)


def measured(study: Any, name: str, validation: float, test: float) -> None:
    kind, number = name[0], name[1]
    settings = study_settings(kind, int(number)) if name != "teacher" else {}
    scores = {"chrf": test, "bleu": test / 2, "exact": test / 4, "perplexity": 3.0, "pairs": 4}
    result = {
        "settings": settings,
        "tokens": 300_000,
        "seconds": 90.0,
        "validation": {**scores, "chrf": validation},
        "test": scores,
        "answers": ["un fichier", "deux", "trois", "quatre"],
    }
    study.run(name).mkdir(parents=True)
    (study.run(name) / "measured.json").write_text(json.dumps(result))


def study_settings(kind: str, number: int) -> dict[str, Any]:
    return {"learning_rate": 10.0 ** (number - 3), "feature_weight": 1.0 if kind == "d" else 0.0}


def test_the_table(script: dict[str, Any], tmp_path: Path) -> None:
    """The best setting on the validation pairs is shown, whatever it does on the test pairs."""
    study = script["Study"]("translation", tmp_path)
    (tmp_path / "data").mkdir()
    rows = [{"prompt": "a", "answer": answer} for answer in ("un fichier", "deux", "trois", "cinq")]
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    measured(study, "teacher", 60.0, 60.0)
    for name, validation, test in (("a0-0", 30.0, 50.0), ("a1-0", 40.0, 36.0), ("a1-1", 20.0, 42.0)):
        measured(study, name, validation, test)
    result = script["summarize"](study, [0, 1, 2])
    assert result["chosen"] == {"a": 1}
    assert result["students"] == {"a": ["a1-0", "a1-1"]}
    assert "answers" not in result["runs"]["teacher"]
    lines = script["tables"]("translation", result).splitlines()
    assert "**Translation**, 4 test pairs:" in lines
    (row,) = [line for line in lines if line.startswith("| (a) direct")]
    assert row.startswith("| (a) direct ternary fine-tuning | 2 | 300,000 | 1.5 | 39.00 (36.00 to 42.00) |")
    assert "| +0.0 to +0.0 | 65.0% |" in row  # the same answers as the teacher
    assert "| (a) | 0.001 | 0 | 30.00 |" in lines
    assert "| (a) | 0.01 | 0 | **40.00** |" in lines
    assert not any("a1-1" in line for line in lines)


def test_what_is_made_from_the_best(script: dict[str, Any], tmp_path: Path) -> None:
    study = script["Study"]("translation", tmp_path)
    for number, validation in enumerate((30.0, 50.0, 40.0)):
        measured(study, f"b{number}-0", validation, 1.0)
    settings = script["settings_of"](study, "d", 0, 0)
    best = script["SEARCH"]["b"][1]
    assert settings["learning_rate"] == best["learning_rate"]
    assert settings["feature_weight"] > 0
    assert "stage2_tokens" not in settings  # (d) has stage 2
    assert "from" not in settings


def test_the_search_ends_before_its_result_is_used(script: dict[str, Any]) -> None:
    order = script["search_order"]()
    assert sorted(order) == sorted(
        (kind, n) for kind, each in script["SEARCH"].items() for n in range(len(each))
    )
    assert [kind for kind, _ in order[:2]] == ["a", "b"]
    assert [kind for kind, _ in order[-2:]] == ["c", "d"]


def test_tasks_take_turns(script: dict[str, Any]) -> None:
    assert [*script["in_turn"]([iter("abc"), iter("x")])] == ["a", "x", "b", "c"]


def test_its_settings_are_valid(script: dict[str, Any]) -> None:
    from bitexport.train import load_config

    for task in script["TASKS"]:
        for kind, settings in script["SEARCH"].items():
            for each in settings:
                changes = {key: value for key, value in each.items() if key != "from"}
                config = load_config(FOLDER / f"{task}.toml", **changes, **script["STUDENT"])
                assert (config.feature_weight > 0) == (kind == "d")
