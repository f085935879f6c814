"""Where training text comes from: a source is a short string, whatever its kind; and the split in two sides.

    gettext:fr              message catalogs (*.mo) installed on this machine; gettext:fr:/folder for others
    parallel:a.en,a.fr      two text files, line for line
    jsonl:file.jsonl        objects with messages, prompt and answer, source and target, or text
    parquet:file.parquet    columns of the same names
    text:file_or_folder     documents: *.txt, *.md and *.py, a folder with everything below it
    stdlib                  the Python standard library's sources (train/corpus.py)
    hub:owner/name[/config][:split[:columns]]   through datasets, streaming; or hub:/folder with its files
                            one column: documents, two: pairs; translation.en reaches into a column

Pairs with an empty side and empty documents are left out, whatever their source.
"""

from __future__ import annotations

import difflib
import gettext
import hashlib
import json
import os
import re
import struct
import tokenize
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitexport.errors import BitexportError, BitexportWarning, UsageError
from train import corpus

CATALOG_ROOTS = ("/usr/share", "/usr/lib", "/usr/local")
DOCUMENT_SUFFIXES = (".txt", ".md", ".py")
# The first set of columns that a row has decides what it is.
COLUMNS = (("messages",), ("prompt", "answer"), ("source", "target"), ("text",))


@dataclass(frozen=True)
class Pair:
    """A text and what should come out of it: its translation, or the answer to a prompt."""

    source: str
    target: str


@dataclass(frozen=True)
class Document:
    """Plain text. ``name``, where there is one, decides the side in place of the text."""

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
    """The records of one source, in an order that depends on its content alone.

    Raises:
        UsageError: the kind is unknown, a file is missing, or its content is not what the kind expects.
    """
    kind, _, where = spec.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        advice = f"did you mean {near[0]}?" if near else "write kind:path, as in jsonl:pairs.jsonl"
        raise UsageError(f"source {spec!r}: unknown kind {kind!r}; known: {', '.join(KINDS)}; {advice}")
    if bool(where) == (kind == "stdlib"):
        expected = "nothing after it" if where else f"something after the colon, as in {kind}:..."
        raise UsageError(f"source {spec!r}: {kind} expects {expected}; see the kinds in train/sources.py")
    try:
        for record in KINDS[kind](spec, where):
            if all(text.strip() for text in texts_of(record)):
                yield record
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or where}"
        raise UsageError(f"source {spec!r}: {reason}; give the path of a file that can be read") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"source {spec!r}: not UTF-8 ({error}); convert the file to UTF-8") from error


def texts_of(record: Record) -> tuple[str, ...]:
    """(text,), or (what is asked, what is answered). Of a chat, the system's messages are left out."""
    match record:
        case Pair(source, target):
            return source, target
        case Document(text):
            return (text,)
        case Chat(messages):
            asked = "\n".join(content for role, content in messages[:-1] if role != "system")
            return asked, messages[-1][1]


def _gettext(spec: str, where: str) -> Iterator[Record]:
    language, _, folder = where.partition(":")
    roots = (folder,) if folder else CATALOG_ROOTS
    # os.walk does not follow links: /usr has links that lead back up.
    below = (Path(place) for root in roots for place, _, _ in os.walk(root) if place.endswith("LC_MESSAGES"))
    folders = sorted(set(below))
    paths = [
        path for place in folders if place.parent.name == language for path in sorted(place.glob("*.mo"))
    ]
    if not paths:
        found = ", ".join(sorted({place.parent.name for place in folders})) or "none"
        raise UsageError(
            f"source {spec!r}: no {language}/LC_MESSAGES/*.mo below {', '.join(roots)}; "
            f"languages found: {found}; install language packs, or use another source"
        )
    broken = []
    for path in paths:
        try:
            pairs = _catalog(path)
        except (OSError, ValueError, LookupError, ArithmeticError, struct.error) as error:
            broken.append(f"{path} ({error})")
        else:
            yield from pairs
    _say_left_out(spec, "catalogs", broken, len(paths))


def _catalog(path: Path) -> list[Pair]:
    """The messages of a compiled catalog, without contexts, in the singular."""
    with path.open("rb") as file:
        translations: Any = gettext.GNUTranslations(file)
    singular = translations.plural(1)
    pairs = []
    for key, target in translations._catalog.items():  # the one way to list what a catalog holds
        source, form = key if isinstance(key, tuple) else (key, singular)
        source = source.rpartition("\x04")[2]
        if source and form == singular and source.strip() != target.strip():  # "" is the header
            pairs.append(Pair(source, target))
    return pairs


def _parallel(spec: str, where: str) -> Iterator[Record]:
    names = where.split(",")
    if len(names) != 2:
        raise UsageError(f"source {spec!r}: {len(names)} files; expected two: parallel:file.en,file.fr")
    # Not splitlines(): U+2028 and the like stand inside sentences.
    sides = [Path(name).read_text(encoding="utf-8").removesuffix("\n").split("\n") for name in names]
    if len(sides[0]) != len(sides[1]):
        counts = " and ".join(
            f"{len(side):,} lines in {name}" for name, side in zip(names, sides, strict=True)
        )
        raise UsageError(
            f"source {spec!r}: {counts}; expected as many: line n of one translates line n of the other"
        )
    for source, target in zip(*sides, strict=True):
        yield Pair(source.strip(), target.strip())


def _jsonl(spec: str, where: str) -> Iterator[Record]:
    with Path(where).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except json.JSONDecodeError as error:
                reason = f"line {number} is not JSON ({error})"
                raise UsageError(f"source {spec!r}: {reason}; expected one object a line") from error
            if line.strip():
                yield _record(row, f"source {spec!r}: line {number}")


def _parquet(spec: str, where: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with Path(where).open("rb") as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    yield _record(row, f"source {spec!r}")
    except pyarrow.ArrowException as error:
        raise UsageError(f"source {spec!r}: not a sound parquet file: {error}; write it anew") from error


def _record(row: Any, where: str, columns: tuple[str, ...] | None = None) -> Record:
    """One row as a record; ``columns`` names one (document) or two (pair) of its columns."""
    if not isinstance(row, Mapping):
        raise UsageError(f"{where}: {type(row).__name__}; expected an object with named columns")
    sets = COLUMNS if columns is None else (columns,)
    chosen = next((names for names in sets if all(_reach(row, name) is not None for name in names)), None)
    if chosen is None:
        expected = ", or ".join(" and ".join(names) for names in sets)
        raise UsageError(
            f"{where}: columns {', '.join(map(str, row))}; expected {expected}; rename the columns"
        )
    values = [_reach(row, name) for name in chosen]
    if chosen == ("messages",):
        try:
            messages = tuple((message["role"], message["content"]) for message in values[0])
        except (TypeError, KeyError):
            messages = ()
        if not messages or messages[-1][0] != "assistant" or not _all_text(sum(messages, ())):
            raise UsageError(
                f"{where}: messages; expected a list of role and content, an assistant's the last"
            )
        return Chat(messages)
    if not _all_text(values):
        found = ", ".join(
            f"{name} is {type(value).__name__}" for name, value in zip(chosen, values, strict=True)
        )
        raise UsageError(f"{where}: {found}; expected text; convert it, or name other columns")
    return Document(values[0]) if len(values) == 1 else Pair(*values)


def _reach(row: Any, name: str) -> Any:
    """Column ``name``, or with dots a value inside it; None where there is none."""
    for part in name.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    return row


def _all_text(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _text(spec: str, where: str) -> Iterator[Record]:
    root = Path(where)
    paths = [path for path in sorted(root.rglob("*")) if path.suffix in DOCUMENT_SUFFIXES and path.is_file()]
    if not root.is_dir():
        paths = [root]
    if not paths:
        raise UsageError(
            f"source {spec!r}: no {', '.join(DOCUMENT_SUFFIXES)} in this folder; give another one"
        )
    broken = []
    for path in paths:
        try:
            yield Document(_read(path))
        except (UnicodeDecodeError, SyntaxError) as error:
            broken.append(f"{path} ({error})")
    _say_left_out(spec, "files", broken, len(paths))


def _read(path: Path) -> str:
    """A file's text; a Python file in the encoding that it declares."""
    with tokenize.open(path) if path.suffix == ".py" else path.open(encoding="utf-8") as file:
        return file.read()


def _stdlib(spec: str, _: str) -> Iterator[Record]:
    root = corpus.standard_library()
    size = 0
    for path in corpus.source_files(root):
        text = corpus._read(path)
        size += len(text)
        yield Document(text, path.relative_to(root).as_posix())
    if size < corpus.LEAST_CHARACTERS:
        expected = f"at least {corpus.LEAST_CHARACTERS:,}; use a Python with its full standard library"
        raise UsageError(f"source {spec!r}: {size:,} characters below {root}; expected {expected}")


def _hub(spec: str, where: str) -> Iterator[Record]:
    import datasets

    name, split, names = (*where.split(":", 2), "", "")[:3]
    owner, config = name, None
    if not Path(name).is_dir() and name.count("/") == 2:
        owner, _, config = name.rpartition("/")
    columns = tuple(names.split(",")) if names else None
    if columns and len(columns) > 2:
        raise UsageError(f"source {spec!r}: {len(columns)} columns; expected one (documents) or two (pairs)")
    try:
        for row in datasets.load_dataset(owner, config, split=split or "train", streaming=True):
            yield _record(row, f"source {spec!r}", columns)
    except BitexportError:
        raise
    except Exception as error:  # whatever datasets, its readers and its transport raise
        raise UsageError(
            f"source {spec!r}: dataset {name} cannot be read ({type(error).__name__}: {error}); expected one "
            "of the hub, reachable or in the cache; without a network give a folder with its files "
            "(hub:/folder), or use parquet: or jsonl:"
        ) from error


KINDS: dict[str, Callable[[str, str], Iterator[Record]]] = {
    "gettext": _gettext,
    "parallel": _parallel,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "text": _text,
    "stdlib": _stdlib,
    "hub": _hub,
}


def _say_left_out(spec: str, what: str, broken: list[str], count: int) -> None:
    if broken:
        text = f"source {spec!r}: {len(broken)} of {count} {what} cannot be decoded and are left out: "
        warnings.warn(text + "; ".join(broken[:3]), BitexportWarning, stacklevel=3)


@dataclass(frozen=True)
class Split:
    """The two sides, each in an order that hashes decide: any beginning of a side is a fair sample of it."""

    train: list[Record]
    held_out: list[Record]
    duplicates: int  # left out: equal to another record
    too_close: int  # left out of held_out: shares a key with the training side


def split(records: Iterable[Record], held_out_percent: float) -> Split:
    """Part the records so that no key (see :func:`keys_of`) is on both sides.

    The key of what is asked decides the side, by its hash, on every machine alike; then whatever is held out
    but has a key that the training side has too is dropped.

    Raises:
        UsageError: a side is empty.
    """
    count = 0
    unique: dict[Record, tuple[tuple[str, ...], bytes]] = {}
    for count, record in enumerate(records, 1):  # noqa: B007
        unique.setdefault(record, (keys_of(record), hashlib.sha256(repr(record).encode()).digest()))
    ordered = sorted(unique, key=lambda record: unique[record][1])
    train = [record for record in ordered if not is_held_out(record, held_out_percent)]
    seen = {key for record in train for key in unique[record][0]}
    candidates = [record for record in ordered if is_held_out(record, held_out_percent)]
    held_out = [record for record in candidates if seen.isdisjoint(unique[record][0])]
    if not train or not held_out:
        raise UsageError(
            f"{count:,} records, held_out_percent = {held_out_percent}: {len(train):,} for training and "
            f"{len(held_out):,} held out; expected some on both sides; give more data or another percentage"
        )
    return Split(train, held_out, count - len(unique), len(candidates) - len(held_out))


def side_of(record: Record, held_out_percent: float) -> Literal["train", "held_out"] | None:
    """The side of one record of a stream, decided without the others; None: leave it out.

    A record is on a side only if the hashes of all its keys say so. For documents that is the same split as
    :func:`split`; of pairs it holds out only percent^2 / 100 in 100, and leaves out twice the percentage.
    """
    sides = {_chosen(key, held_out_percent) for key in keys_of(record)}
    if len(sides) == 2:
        return None
    return "held_out" if sides.pop() else "train"


def is_held_out(record: Record, percent: float) -> bool:
    """Whether the hash of the record's name, or of the key of its first text, is below ``percent`` in 100."""
    name = record.name if isinstance(record, Document) else ""
    return _chosen(name or key_of(texts_of(record)[0]), percent)


def _chosen(key: str, percent: float) -> bool:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10_000 < percent * 100


def keys_of(record: Record) -> tuple[str, ...]:
    """What two records must not share across the sides: the keys of what is asked and of what is answered."""
    return tuple(key_of(text) for text in texts_of(record))


_SPECIFIER = re.compile(
    r"%(?:\d+\$|\(\w+\))?[-+#0' ]*[\d.*]*(?:hh|ll|[hlLqjzt])?[diouxXeEfFgGaAcCsSpnmr]|\{[^{}\s]{0,40}\}|%\d+"
)
_MNEMONIC = re.compile(r"\([_&]\w\)|[_&]")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~«»¡¿،؛؟\u2000-\u206f\u3000-\u303f]+")


def key_of(text: str) -> str:
    """The text without what makes no other text of it: case, white space, punctuation, the letter marks of
    menus (``_`` and ``&``), the value of numbers, the kind of format specifiers."""
    text = _SPECIFIER.sub("0", unicodedata.normalize("NFKC", text))
    text = _NUMBER.sub("0", _MNEMONIC.sub("", text).casefold())
    return " ".join(_PUNCTUATION.sub(" ", text).split())
