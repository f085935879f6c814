"""Where text comes from: every kind of source is named by a short string.

    gettext:fr              message catalogs (*.mo) installed on this machine; gettext:fr:/folder for others
    parallel:a.en,a.fr      two text files, line by line
    jsonl:file.jsonl        objects with messages, prompt and answer, source and target, or text
    parquet:file.parquet    columns of the same names
    text:file_or_folder     documents: *.txt, *.md and *.py, in a folder and everything below it
    stdlib                  the Python standard library's sources (stdlib.py)
    hub:owner/name[/config][:split[:columns]]   streamed through datasets; or hub:/folder with local files;
                            one column: documents, two: pairs; translation.en is a field of a column

Pairs with an empty side and empty documents are skipped, in every source.
"""

from __future__ import annotations

import difflib
import gettext
import json
import os
import struct
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitexport.errors import BitexportError, BitexportWarning, UsageError
from bitexport.text import stdlib
from bitexport.text.rows import stream_rows

CATALOG_ROOTS = ("/usr/share", "/usr/lib", "/usr/local")
DOCUMENT_SUFFIXES = (".txt", ".md", ".py")
# The first of these sets of columns that a row has decides its kind.
COLUMNS = (("messages",), ("prompt", "answer"), ("source", "target"), ("text",))


@dataclass(frozen=True)
class Pair:
    """A text and the expected output: its translation, or the answer to a prompt."""

    source: str
    target: str


@dataclass(frozen=True)
class Document:
    """Plain text. If it has a ``name``, that decides its side of the split, otherwise the text does."""

    text: str
    name: str = ""


@dataclass(frozen=True)
class Chat:
    """A conversation as (role, content); the last message is the answer."""

    messages: tuple[tuple[str, str], ...]


Record = Pair | Document | Chat


def read_sources(specs: Iterable[str]) -> Iterator[Record]:
    """The records of several sources, one source after the other."""
    for spec in specs:
        yield from read_source(spec)


def read_source(spec: str) -> Iterator[Record]:
    """The records of one source, in an order that depends only on its content.

    Raises:
        UsageError: the kind is unknown, a file is missing, or its content is not what the kind expects.
    """
    kind, _, where = spec.partition(":")
    if kind not in KINDS or bool(where) == (kind == "stdlib"):
        near = difflib.get_close_matches(kind, KINDS, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise _bad_source(spec, f"kind {kind!r} and {where!r}", f"stdlib, or {'|'.join(KINDS)}:place{advice}")
    try:
        yield from (record for record in KINDS[kind](spec, where) if all(map(str.strip, texts_of(record))))
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or where})"
        raise _bad_source(spec, reason, "the path of a readable file") from error
    except UnicodeDecodeError as error:
        raise _bad_source(spec, str(error), "UTF-8; convert the file") from error


def texts_of(record: Record) -> tuple[str, ...]:
    """(text,) or (prompt, answer). The prompt of a chat excludes system messages."""
    if isinstance(record, Document):
        return (record.text,)
    if isinstance(record, Pair):
        return record.source, record.target
    prompt = "\n".join(content for role, content in record.messages[:-1] if role != "system")
    return prompt, record.messages[-1][1]


def _bad_source(spec: str, found: str, expected: str) -> UsageError:
    return UsageError(f"source {spec!r}: {found}; expected {expected}")


def _gettext(spec: str, where: str) -> Iterator[Record]:
    language, _, folder = where.partition(":")
    roots = (folder,) if folder else CATALOG_ROOTS
    # os.walk does not follow links; /usr contains links to parent folders.
    folders = (Path(place) for root in roots for place, _, _ in os.walk(root))
    places = sorted({place for place in folders if place.name == "LC_MESSAGES"})
    paths = [path for place in places if place.parent.name == language for path in sorted(place.glob("*.mo"))]
    if not paths:
        languages = ", ".join(sorted({place.parent.name for place in places})) or "none"
        found = f"no {language}/LC_MESSAGES/*.mo below {', '.join(roots)}"
        raise _bad_source(spec, found, f"an installed language: {languages}; install a language pack")
    yield from _read_all(spec, paths, _catalog)


def _catalog(path: Path) -> list[Pair]:
    """The messages of a compiled catalog, without contexts, in the singular."""
    with path.open("rb") as file:
        translations: Any = gettext.GNUTranslations(file)
    singular = translations.plural(1)
    pairs = []
    for key, target in translations._catalog.items():  # the only way to list a catalog's messages
        source, form = key if isinstance(key, tuple) else (key, singular)
        source = source.rpartition("\x04")[2]
        if source and form == singular and source.strip() != target.strip():  # "" is the header
            pairs.append(Pair(source, target))
    return pairs


def _text(spec: str, where: str) -> Iterator[Record]:
    paths = sorted(Path(where).rglob("*")) if Path(where).is_dir() else [Path(where)]
    chosen = [path for path in paths if path.suffix in DOCUMENT_SUFFIXES and not path.is_dir()]
    if not chosen:
        raise _bad_source(spec, f"none of {len(paths)} files is a document", ", ".join(DOCUMENT_SUFFIXES))
    yield from _read_all(spec, chosen, _document)


def _document(path: Path) -> list[Document]:
    """A file's text; a Python file is read in the encoding that it declares."""
    with tokenize.open(path) if path.suffix == ".py" else path.open(encoding="utf-8") as file:
        return [Document(file.read())]


def _stdlib(spec: str, _: str) -> Iterator[Record]:
    root = stdlib.standard_library()
    # With a name, a document gets the same side as in stdlib.held_out_text, which splits by path.
    texts = {path.relative_to(root).as_posix(): stdlib.text_of(path) for path in stdlib.source_files(root)}
    if (size := sum(map(len, texts.values()))) < stdlib.MIN_CHARACTERS:
        expected = f"{stdlib.MIN_CHARACTERS:,} or more; use a Python with its full standard library"
        raise _bad_source(spec, f"{size:,} characters below {root}", expected)
    yield from (Document(text, name) for name, text in texts.items())


def _read_all(spec: str, paths: list[Path], read: Callable[[Path], Iterable[Record]]) -> Iterator[Record]:
    """Every file's records; files that cannot be decoded are skipped with a warning."""
    broken = []
    for path in paths:
        try:
            yield from list(read(path))
        except (ValueError, LookupError, ArithmeticError, SyntaxError, struct.error, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # gettext's own OSErrors have no number
                raise
            broken.append(f"{path} ({error})")
    if broken:
        text = f"source {spec!r}: {len(broken)} of {len(paths)} files cannot be decoded and are skipped: "
        warnings.warn(text + "; ".join(broken[:3]), BitexportWarning, stacklevel=3)


def _parallel(spec: str, where: str) -> Iterator[Record]:
    paths = [Path(name) for name in where.split(",")]
    if len(paths) != 2:
        raise _bad_source(spec, f"{len(paths)} files", "two: parallel:file.en,file.fr")
    counts = [_count_lines(path) for path in paths]
    if counts[0] != counts[1]:
        found = (f"{count:,} lines in {path}" for count, path in zip(counts, paths, strict=True))
        raise _bad_source(
            spec, " and ".join(found), "the same number: line n of one translates line n of the other"
        )
    # Only \n ends a line, as in other programs: U+2028 occurs inside sentences.
    first, second = (path.open(encoding="utf-8", newline="\n") for path in paths)
    with first, second:
        yield from (
            Pair(source.strip(), target.strip()) for source, target in zip(first, second, strict=True)
        )


def _count_lines(path: Path) -> int:
    """Lines of a file, read in parts; the last one may lack its end."""
    count = 0
    last = b"\n"
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            count += part.count(b"\n")
            last = part[-1:]
    return count + (last != b"\n")


def _jsonl(spec: str, where: str) -> Iterator[Record]:
    with Path(where).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                found = f"line {number} is not JSON ({error})"
                raise _bad_source(spec, found, "one object per line") from error
            if line.strip():
                yield _record(row, spec, f"line {number}: ")


def _hub(spec: str, where: str) -> Iterator[Record]:
    name, split, columns = (*where.split(":", 2), "", "")[:3]
    repository = name
    config = None
    if name.count("/") == 2 and not Path(name).is_dir():
        repository, _, config = name.rpartition("/")
    sets = (tuple(columns.split(",")),) if columns else COLUMNS
    yield from _rows(spec, sets, path=repository, name=config, split=split or "train")


def _parquet(spec: str, where: str) -> Iterator[Record]:
    yield from _rows(spec, COLUMNS, path="parquet", data_files=where, split="train")


def _rows(spec: str, sets: tuple[tuple[str, ...], ...], **dataset: Any) -> Iterator[Record]:
    try:
        for number, row in enumerate(stream_rows(**dataset), 1):
            yield _record(row, spec, f"row {number}: ", sets)
    except BitexportError:
        raise
    except Exception as error:  # datasets, its readers and its transport raise many types
        found = f"dataset {dataset['path']} cannot be read ({type(error).__name__}: {error})"
        expected = "a dataset on the hub, reachable or in the cache, or files on this machine"
        raise _bad_source(
            spec, found, f"{expected}; without a network use hub:/folder, parquet: or jsonl:"
        ) from error


def _record(row: Any, spec: str, where: str, sets: tuple[tuple[str, ...], ...] = COLUMNS) -> Record:
    """One row as a record, from the first of ``sets`` that it has: one column (document) or two (pair)."""
    columns = row if isinstance(row, Mapping) else {}
    for names in sets:
        values = [_column(columns, name) for name in names]
        if names == ("messages",) and isinstance(values[0], list):
            return _conversation(values[0], spec, where)
        if all(isinstance(value, str) for value in values) and len(values) in (1, 2):
            return Document(*values) if len(values) == 1 else Pair(*values)
    found = ", ".join(f"{name} ({type(value).__name__})" for name, value in columns.items())
    expected = ", or ".join(" and ".join(names) for names in sets)
    raise _bad_source(
        spec, f"{where}columns {found or 'none'}", f"{expected}, as text; rename or convert them"
    )


def _conversation(messages: list[Any], spec: str, where: str) -> Chat:
    turns = [(_column(message, "role"), _column(message, "content")) for message in messages]
    if not turns or turns[-1][0] != "assistant" or not all(isinstance(text, str) for _, text in turns):
        raise _bad_source(spec, f"{where}messages", "role and content in each, the assistant's last")
    return Chat(tuple(turns))


def _column(row: Any, name: str) -> Any:
    """Column ``name``; with dots, a field inside it. None if it does not exist."""
    for part in name.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    return row


_READERS = (_gettext, _parallel, _jsonl, _parquet, _text, _stdlib, _hub)
KINDS: dict[str, Callable[[str, str], Iterator[Record]]] = {
    reader.__name__[1:]: reader for reader in _READERS
}
