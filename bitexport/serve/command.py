"""The command line and the environment with which llama-server is started."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitexport.runtime.levels import cpu_library_file
from bitexport.serve.address import is_loopback
from bitexport.serve.limits import Limits
from bitexport.system.native_files import find_library_dir, server_program

#: Settings of llama-server that the user's environment may hold would open what we close.
_FOREIGN_PREFIXES = ("LLAMA_", "AIP_", "HF_", "BITEXPORT_API_KEY", "BITEXPORT_SERVE")

PAGE = Path(__file__).resolve().parent / "page"

#: Tokens of a prompt in one evaluation; as in runtime.session, so that both compute the same.
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before the process is started.

    Attributes:
        file: the checked GGUF file.
        overrides: metadata overrides that had to be assumed.
        host, port, api_key: see :class:`bitexport.serve.Server`.
        slots: sequences at the same time.
        ctx: the context of each slot in tokens.
        threads: the number of threads that compute.
        cache_mib: memory for prompts of earlier requests.
        pooling: of an embedding model; None for one that generates text.
        normalize: whether an embedding model's vectors are normalized.
        chats: whether the file has a chat template.
        limits: see :class:`Limits`.
    """

    file: Path
    overrides: Mapping[str, Any]
    host: str
    port: int
    api_key: str | None
    slots: int
    ctx: int
    threads: int
    cache_mib: int
    pooling: str | None
    normalize: bool
    chats: bool
    limits: Limits


def arguments(plan: Plan) -> list[str]:
    """The command line. The key is not in it: every user of the machine can read it."""
    found = [
        str(server_program()),
        *("--model", str(plan.file)),
        *("--alias", plan.file.stem.replace(",", "_")),
        *("--host", plan.host, "--port", str(plan.port)),
        *("--path", str(PAGE)),
        *("--parallel", str(plan.slots), "--ctx-size", str(plan.ctx * plan.slots)),
        *("--threads", str(plan.threads), "--poll", "5"),
        *("--timeout", str(plan.limits.socket_seconds)),
        *("--cache-ram", str(plan.cache_mib), "--no-cache-idle-slots"),
        *("--fit", "off", "--offline", "--no-slots", "--metrics", "--no-ui-mcp-proxy", "--no-agent"),
        *("--cors-origins", "localhost"),
        *("--verbosity", "2", "--log-colors", "off", "--no-log-prefix", "--no-log-timestamps"),
    ]
    if plan.pooling is None:
        found += ["--no-kv-unified", "--batch-size", str(_BATCH), "--ubatch-size", str(_BATCH)]
    else:
        # A text is evaluated at once, and texts together in one part of the context: if libllama divides
        # them, the mean is that of the last part.
        found += ["--embeddings", "--pooling", plan.pooling, "--kv-unified"]
        found += ["--batch-size", str(plan.ctx), "--ubatch-size", str(plan.ctx)]
        found += ["--embd-normalize", "2" if plan.normalize else "-1"]
        # the arithmetic of `bitexport embed`
        found += ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
    for key, value in plan.overrides.items():
        found += ["--override-kv", f"{key}=str:{value}"]
    return found


def environment(plan: Plan, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment: ours without what llama-server takes settings from, with our limits and the key."""
    found = {name: value for name, value in inherited.items() if not name.startswith(_FOREIGN_PREFIXES)}
    limits = plan.limits
    found["BITEXPORT_SERVE"] = json.dumps(
        {
            "body_bytes": limits.body_bytes,
            "prompt_tokens": limits.prompt_tokens,
            "max_tokens": limits.max_tokens,
            "texts": limits.texts,
            "seconds": limits.seconds,
            "requests": plan.slots + limits.queue,
            "stop_seconds": limits.stop_seconds,
            "local_only": plan.api_key is None and is_loopback(plan.host),
            "embeds": plan.pooling is not None,
            "chats": plan.chats,
        }
    )
    if plan.api_key is not None:
        found["LLAMA_API_KEY"] = plan.api_key
    # another libllama on the user's path would be found before ours; a wheel has several libggml-cpu
    searched = [str(cpu_library_file().parent), str(find_library_dir()), found.get("LD_LIBRARY_PATH", "")]
    found["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, searched))
    return found
