"""The data of the study's two tasks, from message catalogs and from the lists of Debian's packages.

    translation   an English message and its French translation
    sections      the description of a package and its section

Each task gets a folder with JSON lines: all.jsonl for the teacher, tenth.jsonl for the students, both without
validation.jsonl, on which settings are chosen, and test.jsonl; and corpus.jsonl, running text for stage 2.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bitexport.system.files import whole_folder
from bitexport.text import read_source, render, split
from bitexport.text.sources import Document, Pair, Record
from bitexport.text.split import key_of
from bitexport.text.templates import Template

TASKS = ("translation", "sections")
#: How a record of each task becomes a prompt and an answer; the same as in the TOML files.
TEMPLATES = {
    "translation": Template("tags", "en", "fr"),
    "sections": Template("tags", "description", "section"),
}
FILES = ("all", "tenth", "validation", "test", "corpus")
SECTIONS = 12  # the most frequent ones
VALIDATION = 500  # pairs
TEST = 1000  # pairs
DOCUMENTS = 10_000  # of stage 2, far more than it reads
HELD_OUT_PERCENT = 3
#: Of a message and its translation together, and of a description, which is cut there: short, so that a core
#: trains on many of them.
MAX_CHARACTERS = 120
# Package lists may be compressed in several ways, which apt knows.
_COMPRESSED = (".gz", ".lz4", ".xz", ".zst")
_DECOMPRESS = ("/usr/lib/apt/apt-helper", "cat-file")


@dataclass(frozen=True)
class Package:
    """What a package list says about a package."""

    source: str
    section: str
    description_md5: str


def prepare(task: str, folder: Path, catalogs: str, package_lists: Path) -> None:
    """Write the files of a task, completely or not at all; nothing if ``folder`` exists.

    Args:
        catalogs: a folder with */fr/LC_MESSAGES/*.mo, or "" for those of this machine.
        package_lists: a folder with *_Packages, *_Translation-en and *_Translation-fr.
    """
    if folder.exists():
        return
    english = descriptions(package_lists, "en")
    if task == "translation":
        source = f"gettext:fr:{catalogs}" if catalogs else "gettext:fr"
        train, held_out = split_messages(read_source(source))
        texts = [*english.values(), *descriptions(package_lists, "fr").values()]
    else:
        train, held_out = split_packages(packages(package_lists), english)
        used = {pair.source for pair in held_out}
        texts = [text for text in english.values() if shorten(text) not in used]
    parts: dict[str, Iterable[Record]] = {
        "all": train,
        "tenth": train[: len(train) // 10],
        "validation": held_out[:VALIDATION],
        "test": held_out[VALIDATION:][:TEST],
        "corpus": [Document(text) for text in sorted(set(texts), key=hash_of)[:DOCUMENTS]],
    }
    with whole_folder(folder, "make room, then start again"):
        folder.mkdir(parents=True)
        for name, records in parts.items():
            write(
                folder / f"{name}.jsonl", records, TEMPLATES[task] if name in ("validation", "test") else None
            )


def split_messages(records: Iterable[Record]) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs in the order of a hash, without those that are long."""
    sides = split((pair for pair in records if fits(pair)), HELD_OUT_PERCENT)
    return [*filter(is_pair, sides.train)], [*filter(is_pair, sides.held_out)]


def is_pair(record: Record) -> bool:
    return isinstance(record, Pair)


def fits(record: Record) -> bool:
    return isinstance(record, Pair) and len(record.source) + len(record.target) <= MAX_CHARACTERS


def split_packages(listed: Iterable[Package], texts: dict[str, str]) -> tuple[list[Pair], list[Pair]]:
    """Descriptions with sections: packages built from one source on one side, and every text once."""
    known = [package for package in listed if package.description_md5 in texts]
    counts = Counter(package.section for package in known)
    chosen = {section for section, _ in counts.most_common(SECTIONS)}
    sides: dict[bool, list[Pair]] = {True: [], False: []}
    seen: set[str] = set()
    for package in sorted(known, key=lambda package: (hash_of(package.source), package.description_md5)):
        text = shorten(texts[package.description_md5])
        if package.section in chosen and key_of(text) not in seen:
            seen.add(key_of(text))
            is_held_out = (
                hash_of(package.source) % 100 < HELD_OUT_PERCENT * 2
            )  # half as many records as messages
            sides[is_held_out].append(Pair(text, package.section))
    return sides[False], sorted(sides[True], key=lambda pair: hash_of(pair.source))


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def shorten(text: str) -> str:
    """The beginning of a text, up to the end of a word."""
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS].rpartition(" ")[0]


def packages(folder: Path) -> list[Package]:
    """Every package of the lists, without the parts of a section's name that say where it is from."""
    found = []
    for stanza in stanzas(folder, "*_Packages*"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
        if "Section" in fields and "Description-md5" in fields:
            source = fields.get("Source", fields["Package"]).split()[0]
            found.append(Package(source, fields["Section"].rpartition("/")[2], fields["Description-md5"]))
    return found


def descriptions(folder: Path, language: str) -> dict[str, str]:
    """Every description by the MD5 of its English text, without line breaks inside paragraphs."""
    found = {}
    for stanza in stanzas(folder, f"*_Translation-{language}*"):
        head, _, body = stanza.partition(f"\nDescription-{language}: ")
        digest = re.search(r"^Description-md5: (\w+)$", head, re.MULTILINE)
        if body and digest:
            found[digest[1]] = paragraphs(body)
    return found


def paragraphs(body: str) -> str:
    """A description as text: one line for the title and for each paragraph."""
    title, *lines = body.split("\n")
    text = " ".join("\n" if line.strip() == "." else line.strip() for line in lines)
    return "\n".join(filter(None, (title.strip(), *(part.strip() for part in text.split("\n")))))


def stanzas(folder: Path, pattern: str) -> Iterator[str]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise SystemExit(
            f"{folder}: no {pattern}; fetch the lists with apt-get update -o Acquire::Languages=en,fr"
        )
    for path in paths:
        if path.suffix in _COMPRESSED:
            text = subprocess.run([*_DECOMPRESS, str(path)], check=True, capture_output=True).stdout.decode()
        else:
            text = path.read_text(encoding="utf-8")
        yield from filter(str.strip, text.split("\n\n"))


def write(path: Path, records: Iterable[Record], template: Template | None) -> None:
    """JSON lines: with a ``template`` prompts and answers for ``bitexport eval``, otherwise a source."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            if template is not None:
                row = dict(zip(("prompt", "answer"), render(record, template), strict=True))
            elif isinstance(record, Document):
                row = {"text": record.text}
            else:
                assert isinstance(record, Pair)
                row = {"source": record.source, "target": record.target}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
