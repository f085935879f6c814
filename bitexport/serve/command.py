"""The command line and the environment with which llama-server is started."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitexport.runtime.drafts.limits import DEFAULT_DRAFT_TOKENS, LOOKUP
from bitexport.runtime.levels import cpu_library_file
from bitexport.runtime.placement import Placement
from bitexport.serve.address import is_loopback
from bitexport.serve.limits import Limits
from bitexport.system.native_files import find_library_dir, server_program

#: Settings of llama-server that the user's environment may hold would open what we close.
_FOREIGN_PREFIXES = ("LLAMA_", "AIP_", "HF_", "BITEXPORT_API_KEY", "BITEXPORT_SERVE")

PAGE = Path(__file__).resolve().parent / "page"

#: Tokens of a prompt in one evaluation; as in runtime.session, so that both compute the same.
BATCH = 512

#: Tokens that have to stand somewhere before for what followed them to be drafted.
_MATCHING = 5


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
        workers: addresses of the machines that compute some of the layers.
        placement: which ones; None without workers.
        draft: where drafts come from: :data:`bitexport.runtime.drafts.limits.LOOKUP`, or a checked GGUF file;
            None for no drafts.
        draft_tokens: the most drafted tokens of a pass.
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
    workers: tuple[str, ...] = ()
    placement: Placement | None = None
    draft: str | Path | None = None
    draft_tokens: int = DEFAULT_DRAFT_TOKENS

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of this machine and of each worker; empty without workers."""
        return () if self.placement is None else self.placement.layers


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
        found += ["--no-kv-unified", "--batch-size", str(BATCH), "--ubatch-size", str(BATCH)]
    else:
        # A text is evaluated at once, and texts together in one part of the context: if libllama divides
        # them, the mean is that of the last part.
        found += ["--embeddings", "--pooling", plan.pooling, "--kv-unified"]
        found += ["--batch-size", str(plan.ctx), "--ubatch-size", str(plan.ctx)]
        found += ["--embd-normalize", "2" if plan.normalize else "-1"]
        # the arithmetic of `bitexport embed`
        found += ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
    if plan.placement is not None:
        found += ["--rpc", ",".join(plan.workers), "--split-mode", "layer"]
        found += ["--n-gpu-layers", str(plan.placement.n_gpu_layers)]
        found += ["--tensor-split", ",".join(map(str, plan.placement.tensor_split))]
    found += _draft_arguments(plan)
    for key, value in plan.overrides.items():
        found += ["--override-kv", f"{key}=str:{value}"]
    return found


def _draft_arguments(plan: Plan) -> list[str]:
    """llama-server's options for drafts; with them, too, each token is chosen by the model itself."""
    if plan.draft is None:
        return []
    most = plan.draft_tokens
    if plan.draft == LOOKUP:
        # it drafts at least as many tokens as have to match
        matching = str(min(_MATCHING, most))
        found = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", matching]
        return [*found, "--spec-ngram-simple-size-m", str(most)]
    found = ["--spec-type", "draft-simple", "--spec-draft-model", str(plan.draft)]
    # below this probability the draft model's tokens are wrong more often than not
    return [*found, "--spec-draft-n-max", str(most), "--spec-draft-p-min", "0.5"]


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
