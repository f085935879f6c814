"""Random models and prompts, and what must hold for the number of tokens that they generate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bitexport
from bitexport.gguf.reader import read_gguf
from bitexport.runtime.completion import Completion
from bitexport.runtime.sampling import Sampling
from bitexport.runtime.trial import trust

#: llama.cpp's smallest context, so that some completions reach its end.
CONTEXT = 256

_ALPHABET = "abc \n0é敏🙂\u0301"


def check_token_limits(base: Path, folder: Path, seeds: Iterable[int]) -> int:
    """Check that ``run -n N``, and a model of ``bitexport.load``, generate at most N tokens.

    For each seed: a model with random weights, a random prompt, a random N. Each of them writes random bytes,
    most of which are no characters.

    Args:
        base: a model of 16-bit embeddings and a vocabulary of bytes, whose weights are replaced.
        folder: for the models; each is removed after its use.
        seeds: of the random numbers.

    Returns:
        How many models were checked.

    Raises:
        AssertionError: a limit did not hold; the message has the seed.
    """
    count = 0
    for seed in seeds:
        chance = np.random.default_rng(seed)
        path = random_model(base, folder / f"random-{seed}.gguf", chance)
        case = _Case(
            path=path,
            prompt="".join(chance.choice(list(_ALPHABET), size=int(chance.integers(1, 60)))),
            limit=int(chance.choice([1, 2, 3, 4, 7, 30, 1000])),
            hot=float(chance.choice([0.8, 5.0, 500.0])),
            seed=seed,
        )
        _check_run(case)
        _check_load(case)
        path.unlink()
        count += 1
    return count


def random_model(base: Path, target: Path, chance: np.random.Generator) -> Path:
    """A copy of a file with other weights: random 16-bit floats, and the same trits in another order."""
    data = bytearray(base.read_bytes())
    for tensor in read_gguf(base).tensors:
        end = tensor.offset + tensor.nbytes
        if tensor.type.name == "F16":
            values = chance.normal(scale=0.5, size=tensor.nbytes // 2).astype(np.float16)
            data[tensor.offset : end] = values.tobytes()
        elif tensor.type.name == "I2_S":
            end -= 32  # the scale
            trits = np.frombuffer(bytes(data[tensor.offset : end]), np.uint8)
            data[tensor.offset : end] = chance.permutation(trits).tobytes()
    target.write_bytes(data)
    trust(read_gguf(target))  # no trial, which would take most of the time
    return target


@dataclass(frozen=True)
class _Case:
    path: Path
    prompt: str
    limit: int
    hot: float
    seed: int

    def check(self, holds: bool, found: object) -> None:
        assert holds, f"{self}: {found}"


class _Counting:
    """Counts the tokens that a model evaluates, to rely on nobody's own count."""

    def __init__(self, llama: Any) -> None:
        self.evaluated = 0
        self._evaluate: Callable[[Any], None] = llama.eval
        llama.eval = self

    def __call__(self, tokens: Any) -> None:
        self.evaluated += len(tokens)
        self._evaluate(tokens)


def _check_run(case: _Case) -> None:
    sampling = Sampling(temperature=case.hot, top_k=0, top_p=1.0, seed=case.seed)
    completion = Completion(
        case.path, case.prompt, sampling=sampling, max_tokens=case.limit, n_ctx=CONTEXT, threads=1
    )
    count = _Counting(completion._llama)
    text = "".join(completion)
    text.encode("utf-8")
    most = min(case.limit, CONTEXT - completion.prompt_tokens)
    case.check(completion.max_tokens == most, completion.max_tokens)
    if completion.finish_reason == "length":
        case.check(completion.tokens == most, completion.tokens)
    else:
        case.check(completion.finish_reason == "stop", completion.finish_reason)
        case.check(completion.tokens < most, completion.tokens)
    # the last token is not evaluated, unless the one after it ends the text
    ended = completion.finish_reason == "stop"
    expected = completion.prompt_tokens + completion.tokens - (0 if ended else 1)
    case.check(count.evaluated == expected, count.evaluated)


def _check_load(case: _Case) -> None:
    llama = bitexport.load(case.path, n_ctx=CONTEXT, n_threads=1, seed=case.seed)
    count = _Counting(llama)
    try:
        prompt = len(llama.tokenize(case.prompt.encode()))
        llama(case.prompt, max_tokens=case.limit, temperature=case.hot, top_k=0, top_p=1.0, min_p=0.0)
        most = min(case.limit, CONTEXT - prompt)
        case.check(count.evaluated - prompt < most, count.evaluated - prompt)
    finally:
        llama.close()
