"""Python and its packages, compared with the requirements in bitexport's own metadata."""

from __future__ import annotations

import importlib.metadata
import operator
import platform
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import bitexport
from bitexport.environment.check import Check

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MINIMUM_PYTHON = ">=3.10"  # as in pyproject.toml

#: What each extra of pyproject.toml is for, without ``dev``, which only bitexport's own tests need.
PURPOSES = {
    "": "All commands need these; gguf must match the release of our libllama.",
    "parity": "`parity`, `eval`, `doctor CKPT` and training run PyTorch; tested with these versions.",
    "plot": "Draws the pictures of `bench --plot`, `parity --plot` and `--report`, and of training.",
    "eval": "`eval` scores translations with it.",
    "train": "`train` reads data and logs its curves with these.",
}
#: Used if installed, but never required.
OPTIONAL = {"wandb": "Training logs to Weights & Biases if its configuration asks for that."}

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le,
    ">": operator.gt, "<": operator.lt,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Requirement:
    """``torch==2.13.0; extra == "parity"``, parsed; ``extra`` is empty for what every command needs."""

    name: str
    versions: str
    extra: str

    def accepts(self, version: str) -> bool:
        """Whether ``versions`` allows it; local versions (``+cpu``) and suffixes (``rc1``) are ignored."""
        return all(_allows(part.strip(), version) for part in self.versions.split(",") if part.strip())


def check_python() -> list[Check]:
    wanted = Requirement("python", MINIMUM_PYTHON, "")
    version = platform.python_version()
    fits = wanted.accepts(version)
    value = f"{platform.python_implementation()} {version}, bitexport {bitexport.__version__}"
    advice = "" if fits else f"create an environment with Python {wanted.versions}"
    return [Check("python", value, "ok" if fits else "problem", "Runs everything.", advice)]


def check_packages(requirements: Iterable[str] | None = None) -> list[Check]:
    """One check for what every command needs, and one for each extra.

    Args:
        requirements: lines as in a package's metadata; bitexport's own if None.
    """
    requirements = _own_requirements() if requirements is None else requirements
    if requirements is None:
        meaning = "The required packages and versions are in bitexport's metadata, which is missing here."
        return [Check("packages", "bitexport is not installed", "warning", meaning, "pip install bitexport")]
    parsed = [found for text in requirements if (found := parse(text)) is not None]
    checks = [_check_group(extra, [item for item in parsed if item.extra == extra]) for extra in PURPOSES]
    for name, meaning in OPTIONAL.items():
        checks.append(_found(f"package {name}", _version(name) or "not installed", meaning))
    return [check for check in checks if check is not None]


def parse(text: str) -> Requirement | None:
    """Parse one line of a package's metadata; None if it is for another Python, or names bitexport itself."""
    match = _REQUIREMENT.match(text.strip())
    if match is None or match[1] == "bitexport":
        return None
    marker = match[3] or ""
    extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", marker)
    python = re.search(r"python_version\s*([<>=!]+)\s*['\"]([\d.]+)", marker)
    if python is not None:
        version = ".".join(platform.python_version_tuple()[:2])
        if not _allows(python[1] + python[2], version):
            return None
    return Requirement(match[1], match[2].strip(), extra[1] if extra else "")


def _check_group(extra: str, wanted: list[Requirement]) -> Check | None:
    if not wanted:
        return None
    found, wrong = [], []
    for item in wanted:
        version = _version(item.name)
        found.append(f"{item.name} {version or '(not installed)'}")
        if version is None or not item.accepts(version):
            wrong.append(f"{item.name}{item.versions}")
    name = f"packages [{extra}]" if extra else "packages"
    value = ", ".join(found)
    if not wrong:
        return _found(name, value, PURPOSES[extra])
    package = f"'bitexport[{extra}]'" if extra else "bitexport"
    advice = f"pip install {package}, which installs {', '.join(wrong)}"
    return Check(name, value, "warning" if extra else "problem", PURPOSES[extra], advice)


def _found(name: str, value: str, meaning: str) -> Check:
    return Check(name, value, "ok", meaning)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _own_requirements() -> list[str] | None:
    """The requirements in pyproject.toml; in a checkout from the file itself, as metadata may be older."""
    if not _PROJECT.is_file():
        try:
            return importlib.metadata.requires("bitexport")
        except importlib.metadata.PackageNotFoundError:
            return None
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    for extra, items in project["optional-dependencies"].items():
        found += [f"{item} {'and' if ';' in item else ';'} extra == '{extra}'" for item in items]
    return found


def _allows(clause: str, version: str) -> bool:
    match = re.match(r"(==|!=|>=|<=|>|<|~=)\s*(\S+)", clause)
    assert match is not None, f"unknown version clause {clause!r}"
    bound, release = _release(match[2]), _release(version)
    if match[1] == "~=":
        return release >= bound and release[: len(bound) - 1] == bound[:-1]
    width = max(len(bound), len(release))
    return _COMPARE[match[1]](_padded(release, width), _padded(bound, width))


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _padded(release: tuple[int, ...], width: int) -> tuple[int, ...]:
    return release + (0,) * (width - len(release))
