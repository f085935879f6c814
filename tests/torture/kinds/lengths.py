"""``run -n N`` on random models: exactly N tokens, or fewer at an end of text or of the context."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from bitexport.convert import convert
from bitexport.errors import UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.completion import Completion, Sampling
from tests.support.tiny_models import Shape, tiny_checkpoint
from tests.torture.workers import GIB, TortureError

SHARE = 5
SECONDS = 20
MEMORY = GIB

_CONTEXT = 256  # the least that libllama opens
_SEEDS = (("bitnet", "gpt2"), ("llama", "llama2"), ("qwen3", "qwen2"), ("llama-student", "llama3"))


def prepare(folder: Path) -> None:
    for number, (architecture, tokenizer) in enumerate(_SEEDS):
        shape = Shape(hidden=256, ffn=256, layers=1, heads=4, kv_heads=2, context=_CONTEXT)
        source = tiny_checkpoint(
            folder / f"{number}", shape=shape, architecture=architecture, tokenizer=tokenizer
        )
        convert(source, folder / f"{number}.gguf", embed_type="f16")


def execute(chance: random.Random, prepared: Path, folder: Path) -> str:
    model = _random_model(prepared / f"{chance.randrange(len(_SEEDS))}.gguf", folder / "model.gguf", chance)
    prompt = _random_prompt(chance)
    (folder / "prompt.txt").write_text(prompt, encoding="utf-8")
    wanted = chance.choice((1, 2, 3, 4, 5, 7, 8, 16, 33, 10_000))
    sampling = Sampling(
        chance.choice((0.0, 0.8, 5.0, 500.0)), top_k=0, top_p=1.0, seed=chance.randrange(2**31)
    )
    try:
        made = Completion(model, prompt, sampling=sampling, max_tokens=wanted, n_ctx=_CONTEXT, threads=1)
    except UsageError as error:
        return "refused: the prompt is too long" if "tokens" in str(error) else _unexpected(error)
    pieces = "".join(made).encode("utf-8")  # no half character
    room = _CONTEXT - made.prompt_tokens
    if made.tokens > wanted or made.tokens > room:
        raise TortureError(f"{made.tokens} tokens instead of {wanted}, with room for {room}")
    if made.finish_reason == "length" and made.tokens != min(wanted, room):
        raise TortureError(f"stopped at {made.tokens} of {min(wanted, room)} tokens")
    if made.finish_reason not in ("length", "stop"):
        raise TortureError(f"ended without a reason after {len(pieces)} bytes")
    ended = "end of text" if made.finish_reason == "stop" else "context" if wanted > room else "limit"
    return f"worked, to the {ended}"


def _unexpected(error: Exception) -> str:
    raise TortureError(str(error)) from error


def _random_model(source: Path, target: Path, chance: random.Random) -> Path:
    """A copy with other embeddings, which decide what it says."""
    content = bytearray(source.read_bytes())
    values = np.random.default_rng(chance.randrange(2**32))
    for tensor in read_gguf(source).tensors:
        if tensor.type.name == "f16":
            count = tensor.nbytes // 2
            made = values.normal(0, chance.choice((0.02, 0.5, 2.0)), count).astype(np.float16)
            content[tensor.offset : tensor.offset + tensor.nbytes] = made.tobytes()
    target.write_bytes(content)
    return target


def _random_prompt(chance: random.Random) -> str:
    alphabet = chance.choice(
        ("ab \n", "é漢👩\u200d", "".join(map(chr, range(1, 128))), "\u0301\ufeff\U0010ffff<|>")
    )
    return "".join(chance.choices(alphabet, k=chance.choice((1, 2, 10, 60, 300))))
