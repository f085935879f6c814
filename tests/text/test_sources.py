"""Readers of training text, on files that the tests write byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bitexport.errors import BitexportWarning, UsageError
from bitexport.text import stdlib as corpus
from bitexport.text.sources import KINDS, Chat, Document, Pair, read_source, read_sources

HEADER = "Content-Type: text/plain; charset={}\nPlural-Forms: nplurals=2; plural=n > 1;\n"


def write_catalog(folder: Path, name: str, messages: dict[str, str], charset: str = "UTF-8") -> Path:
    """Write a .mo file, little-endian, without a hash table; strings end with a zero byte."""
    path = folder / "fr" / "LC_MESSAGES" / f"{name}.mo"
    path.parent.mkdir(parents=True, exist_ok=True)
    messages = {"": HEADER.format(charset)} | messages
    sides = [
        [text.encode(charset) for text in side]
        for side in (sorted(messages), [messages[k] for k in sorted(messages)])
    ]
    count = len(messages)
    offset = 28 + 16 * count
    tables, text = b"", b""
    for side in sides:
        for encoded in side:
            tables += struct.pack("<II", len(encoded), offset + len(text))
            text += encoded + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 28 + 16 * count)
    path.write_bytes(header + tables + text)
    return path


def read(kind: str, *paths: Path) -> list[object]:
    return list(read_source(f"{kind}:{','.join(map(str, paths))}"))


def refused(spec: str) -> str:
    with pytest.raises(UsageError) as caught:
        list(read_source(spec))
    assert repr(spec) in str(caught.value)
    return str(caught.value)


def test_catalogs_without_contexts_headers_plurals_and_untranslated_messages(tmp_path: Path) -> None:
    messages = {
        "Open": "Ouvrir",
        "menu\x04Close": "Fermer",
        "%d file\0%d files": "%d fichier\0%d fichiers",
        "door\x04%d key\0%d keys": "%d clé\0%d clés",
        "same": " same ",
        "blank": "  ",
    }
    write_catalog(tmp_path / "share", "a", messages)
    pairs = read("gettext:fr", tmp_path)
    assert sorted((pair.source, pair.target) for pair in pairs) == [
        ("%d file", "%d fichier"),
        ("%d key", "%d clé"),
        ("Close", "Fermer"),
        ("Open", "Ouvrir"),
    ]


def test_of_a_plural_the_form_for_one_is_used(tmp_path: Path) -> None:
    path = write_catalog(tmp_path, "a", {"%d file\0%d files": "none\0one\0many"})
    path.write_bytes(path.read_bytes().replace(b"plural=n > 1;", b"plural=n % 3;"))
    assert read("gettext:fr", tmp_path) == [Pair("%d file", "one")]


def test_catalogs_in_other_character_sets_and_in_order_of_path(tmp_path: Path) -> None:
    write_catalog(tmp_path, "b", {"Yes": "Où ça"}, "ISO-8859-1")
    write_catalog(tmp_path, "a", {"No": "Ça €"}, "UTF-8")
    assert read("gettext:fr", tmp_path) == [Pair("No", "Ça €"), Pair("Yes", "Où ça")]


def test_broken_catalogs_are_skipped_and_counted(tmp_path: Path) -> None:
    good = write_catalog(tmp_path, "good", {"Yes": "Oui"})
    wrong = write_catalog(tmp_path, "wrong", {"Yes": "É"}, "ISO-8859-1")  # claims UTF-8, but is not
    wrong.write_bytes(wrong.read_bytes().replace(b"ISO-8859-1", b"UTF-8     "))
    good.with_name("cut.mo").write_bytes(good.read_bytes()[:40])
    good.with_name("short.mo").write_bytes(b"\xde\x12\x04\x95\0")
    good.with_name("text.mo").write_bytes(b"not a catalog")
    zero = good.read_bytes().replace(b"plural=n > 1;", b"plural=1%n/0;")
    good.with_name("zero.mo").write_bytes(zero)
    with pytest.warns(BitexportWarning, match="5 of 6 files cannot be decoded and are skipped") as caught:
        assert read("gettext:fr", tmp_path) == [Pair("Yes", "Oui")]
    assert "cut.mo" in str(caught[0].message)


def test_a_link_to_a_parent_folder_is_not_followed(tmp_path: Path) -> None:
    write_catalog(tmp_path / "share", "a", {"Yes": "Oui"})
    (tmp_path / "share" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert read("gettext:fr", tmp_path) == [Pair("Yes", "Oui")]


def test_a_language_without_catalogs_names_the_installed_ones(tmp_path: Path) -> None:
    write_catalog(tmp_path, "a", {"Yes": "Oui"})
    message = refused(f"gettext:xx:{tmp_path}")
    assert "no xx/LC_MESSAGES/*.mo" in message
    assert "an installed language: fr" in message


def test_parallel_files_line_by_line(tmp_path: Path) -> None:
    english, french = tmp_path / "a.en", tmp_path / "a.fr"
    english.write_bytes("one\r\ntwo\u2028still two\n\nfour\n".encode())  # U+2028 ends no line
    french.write_bytes(b"un\ndeux\ntrois\nquatre")  # no line break at the end
    expected = [Pair("one", "un"), Pair("two\u2028still two", "deux"), Pair("four", "quatre")]
    assert read("parallel", english, french) == expected


def test_parallel_files_of_unequal_length_name_both_counts(tmp_path: Path) -> None:
    english, french = tmp_path / "a.en", tmp_path / "a.fr"
    english.write_text("one\ntwo\nthree\n")
    french.write_text("un\ndeux\n")
    message = refused(f"parallel:{english},{french}")
    assert f"3 lines in {english} and 2 lines in {french}" in message
    assert "1 files; expected two" in refused(f"parallel:{english}")


ROWS = [
    {"prompt": "2 + 2?", "answer": "4", "text": "the first set of columns counts"},
    {"source": "Yes", "target": "Oui"},
    {"text": "A document."},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"source": "an empty side", "target": " "},
]
RECORDS = [
    Pair("2 + 2?", "4"),
    Pair("Yes", "Oui"),
    Document("A document."),
    Chat((("user", "Hi"), ("assistant", "Hello"))),
]


def test_jsonl_of_every_kind_of_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS))  # blank lines between
    assert read("jsonl", path) == RECORDS


def test_parquet_of_every_kind_of_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS, schema_of(ROWS)), path)
    assert read("parquet", path) == RECORDS


def schema_of(rows: list[dict[str, object]]) -> pyarrow.Schema:
    merged = {
        name: value for row in rows for name, value in row.items()
    }  # pyarrow itself looks at the first row
    return pyarrow.Table.from_pylist([merged]).schema


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"text": "a"}\n\n{"text": ', "line 3 is not JSON"),
        ('{"text": "a"}\n[1]', "line 2: columns none; expected messages, or prompt and answer"),
        (
            '{"question": "a", "answer": "b"}',
            "line 1: columns question (str), answer (str); expected messages, or prompt",
        ),
        ('{"text": 3}', "line 1: columns text (int)"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "the assistant's last"),
        ('{"messages": [{"role": "assistant", "content": ["a"]}]}', "role and content in each"),
        ('{"messages": ["a"]}', "role and content in each"),
        ('{"messages": []}', "role and content in each"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    assert expected in refused(f"jsonl:{path}")


def test_text_reads_a_folder_in_order_and_says_what_it_skips(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("bé", encoding="utf-8")
    (tmp_path / "a.py").write_bytes("# coding: latin-1\n# é".encode("latin-1"))
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "d.png").write_bytes(b"no text")
    (tmp_path / "e.txt").write_text(" \n")
    with pytest.warns(BitexportWarning, match=r"1 of 4 files cannot be decoded and are skipped: .*c\.txt"):
        found = read("text", tmp_path)
    assert found == [Document("# coding: latin-1\n# é"), Document("bé")]
    assert read("text", tmp_path / "deep" / "b.md") == [Document("bé")]
    assert "none of 1 files is a document; expected .txt, .md, .py" in refused(f"text:{tmp_path / 'd.png'}")


def test_documents_of_the_standard_library_have_the_names_that_split_them() -> None:
    documents = list(read_source("stdlib"))
    names = {document.name for document in documents}
    assert {"ast.py", "json/decoder.py"} <= names
    assert len(documents) == len(names)
    assert sum(len(document.text) for document in documents) >= corpus.MIN_CHARACTERS


def write_dataset(folder: Path) -> Path:
    folder.mkdir()
    rows = [{"content": f"text {i}", "translation": {"en": f"no. {i}", "fr": f"nº {i}"}} for i in range(3)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "test.jsonl").write_text(json.dumps({"content": "held", "translation": {"en": "a", "fr": "b"}}))
    return folder


def test_hub_reads_a_folder_with_split_and_columns(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set")
    assert list(read_source(f"hub:{folder}:train:content")) == [Document(f"text {i}") for i in range(3)]
    pairs = list(read_source(f"hub:{folder}::translation.en,translation.fr"))
    assert pairs == [Pair(f"no. {i}", f"nº {i}") for i in range(3)]
    assert list(read_source(f"hub:{folder}:test:content")) == [Document("held")]


def test_hub_names_the_existing_columns_and_splits(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set")
    assert "row 1: columns content (str), translation (dict); expected text" in refused(
        f"hub:{folder}:train:text"
    )
    assert "Available splits: ['train', 'test']" in refused(f"hub:{folder}:dev")


def test_hub_without_a_network_names_the_dataset_and_the_alternatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    message = refused("hub:nobody/nothing/en-fr:train:translation.en,translation.fr")
    assert "dataset nobody/nothing cannot be read" in message
    assert "without a network use hub:/folder, parquet: or jsonl:" in message


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("getext:fr", "did you mean gettext?"),
        ("wikipedia", "kind 'wikipedia' and ''; expected stdlib, or gettext|parallel|"),
        ("jsonl:", "kind 'jsonl' and ''"),
        ("stdlib:3.11", "kind 'stdlib' and '3.11'"),
        ("jsonl:missing.jsonl", "No such file or directory (missing.jsonl); expected the path of a readable"),
        ("parallel:missing.en,missing.fr", "No such file or directory (missing.en)"),
        ("parquet:missing.parquet", "cannot be read (FileNotFoundError"),
        ("text:missing.txt", "No such file or directory (missing.txt)"),
        ("text:missing", "none of 1 files is a document"),
        (
            "gettext:fr:missing",
            "no fr/LC_MESSAGES/*.mo below missing; expected an installed language: none",
        ),
    ],
)
def test_bad_sources(spec: str, expected: str) -> None:
    assert expected in refused(spec)


def test_files_of_the_wrong_format(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xff\xff\n")
    assert "UTF-8; convert the file" in refused(f"jsonl:{path}")
    assert "UTF-8; convert the file" in refused(f"parallel:{path},{path}")
    assert "cannot be read" in refused(f"parquet:{path}")
    assert "Is a directory" in refused(f"jsonl:{tmp_path}")


def test_several_sources_follow_each_other(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(name)
    specs = [f"text:{tmp_path}/b.txt", f"text:{tmp_path}/a.txt"]
    assert list(read_sources(specs)) == [Document("b"), Document("a")]


def test_every_kind_is_documented() -> None:
    import bitexport.text.sources

    assert bitexport.text.sources.__doc__ is not None
    assert all(f"\n    {kind}" in bitexport.text.sources.__doc__ for kind in KINDS)
