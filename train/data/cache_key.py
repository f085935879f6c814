"""What decides the tokens of a stage's data, as the name of their folder in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitexport.text import Template, sources
from bitexport.train.data.mixture import Mixture

#: Rises when the same inputs give other tokens, another split or another order, or other files.
FORMAT = 1


def cache_key(
    mixture: Mixture,
    template: Template,
    held_out_percent: int,
    tokenizer: Any,
    limit: int,
    labels: bool = False,
) -> str:
    """A name for the tokens that these arguments give; other content of a file gives another name.

    Of a dataset on the hub, only the name counts: to read a newer version of it, remove the cache.

    Args:
        limit, labels: see :func:`bitexport.train.data.cache.open_cache`.
    """
    inputs = {
        "format": FORMAT,
        "sources": [[spec, _content(spec)] for spec in mixture.specs],
        "weights": mixture.weights if limit else None,  # without a limit, everything is read anyway
        "template": dataclasses.asdict(template),
        "held_out_percent": held_out_percent,
        "limit": limit,
        "tokenizer": _describe_tokenizer(tokenizer),
        "versions": {name: version(name) for name in ("tokenizers", "transformers", "jinja2")},
    }
    if labels:  # left out otherwise, so that caches of earlier versions keep their names
        inputs["labels"] = True
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:24]


def _describe_tokenizer(tokenizer: Any) -> list[Any]:
    """Everything that decides the ids of a text, its chat template and its end token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    return [
        type(tokenizer).__name__,
        hashlib.sha256(model.encode()).hexdigest(),
        getattr(tokenizer, "chat_template", None),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.eos_token_id,
    ]


def _content(spec: str) -> Any:
    """Names, sizes and times of the files of a source; of the standard library, the version of Python."""
    kind, _, place = spec.partition(":")
    if kind == "stdlib":
        return platform.python_version()
    if kind == "gettext":
        folder = place.partition(":")[2]
        roots = [folder] if folder else list(sources.CATALOG_ROOTS)
        return [_describe(path) for root in roots for path in sorted(Path(root).rglob("LC_MESSAGES/*.mo"))]
    if kind == "hub":
        place = place.partition(":")[0]
    names = place.split(",") if kind == "parallel" else [place]
    found = []
    for name in names:
        pattern = Path(name)
        # A parquet source may be a pattern; a name that exists is not one.
        matches = [pattern] if pattern.exists() else sorted(pattern.parent.glob(pattern.name))
        for path in matches:
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            found += [_describe(file) for file in files if file.is_file()]
    return found


def _describe(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
