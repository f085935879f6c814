"""Trains a student of block diffusion, English to French, and measures it; run by `make en-fr-blocks`.

It starts from the student in this folder. The table has BLEU and chrF of greedy answers to held-out texts: of
the student in this folder, and of the new one, token by token and in blocks by each rule; the tokens that a
pass settles; and the speed beside the student in this folder. All answer one text after the other in turn, so
that the speeds are comparable. With --model an existing model is measured without training.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from bitexport.blocks import BlockDecoding, BlockRule
from bitexport.convert import convert
from bitexport.evaluation import PromptAnswer, read_pairs
from bitexport.evaluation.translation import translation
from bitexport.reference.model import load_tokenizer
from bitexport.runtime.block_session import BlockSession
from bitexport.runtime.session import Session
from bitexport.text import Template, encode_record, read_sources, render, split
from bitexport.train import load_config, train

EXAMPLE = Path(__file__).resolve().parent
ROOT = EXAMPLE.parents[1]
OUT = ROOT / "out" / "en-fr"
RULES = (
    BlockRule("greedy"),
    BlockRule("confidence", 0.95),
    BlockRule("confidence", 0.9),
    BlockRule("confidence", 0.7),
    BlockRule("confidence", 0.5),
    BlockRule("adaptive", 0.9),
)
HEADER = ["decoding", "BLEU", "chrF", "tokens", "tokens/pass", "times as fast"]
MAX_TOKENS = 96
# The texts are divided into so many parts, for the range of the speed.
PARTS = 5


@dataclass(frozen=True)
class Answer:
    """The answer to one text, and what it cost. A token that ends it counts: it is a decision, too."""

    text: str
    ended: bool
    tokens: int
    passes: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a checkpoint to measure instead of training one")
    parser.add_argument("--held-out", type=Path, help="a file of pairs; default: this machine's catalogs")
    parser.add_argument("--pairs", type=int, default=1000, help="held-out pairs to answer")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    options = parser.parse_args()
    model = options.model or _train()
    pairs = read_pairs(options.held_out, options.pairs) if options.held_out else held_out(options.pairs)
    OUT.mkdir(parents=True, exist_ok=True)
    plain, blocks = OUT / "plain.gguf", OUT / "blocks.gguf"
    convert(EXAMPLE, plain, force=True)
    convert(model, blocks, force=True)
    print(f"{len(pairs):,} held-out pairs")
    for threads in map(int, options.threads.split(",")):
        found = measure(plain, blocks, [pair.prompt for pair in pairs], threads)
        print(f"\nthreads: {threads}\n\n{table(found, [pair.answer for pair in pairs])}")


def held_out(count: int) -> list[PromptAnswer]:
    """Held-out pairs of the catalogs on this machine; the student in this folder has not seen them."""
    config = load_config(EXAMPLE / "block.toml")
    template = Template(config.template, config.source_language, config.target_language)
    tokenizer = load_tokenizer(EXAMPLE)
    records = split(read_sources(config.data), config.held_out_percent).held_out
    short = (
        record for record in records if encode_record(record, tokenizer, template, config.sequence_length)
    )
    return [PromptAnswer(*render(record, template)) for record in islice(short, count)]


def measure(plain: Path, blocks: Path, prompts: Sequence[str], threads: int) -> dict[str, list[Answer]]:
    """The answers to all prompts by way of decoding; each is answered in all ways before the next one."""
    found: dict[str, list[Answer]] = {}
    with (
        Session(plain, exact=False, n_threads=threads) as student,
        Session(blocks, exact=False, n_threads=threads) as causal,
        BlockSession(blocks, exact=False, n_threads=threads) as session,
    ):
        ways: dict[str, Callable[[str], Answer]] = {
            "plain student": partial(token_by_token, student, student.end_tokens()),
            "token by token": partial(token_by_token, causal, causal.end_tokens()),
        }
        for rule in RULES:
            name = rule.name if rule.name == "greedy" else f"{rule.name} {rule.threshold:g}"
            ways[name] = partial(in_blocks, session, session.end_tokens(), rule)
        for prompt in prompts:
            for name, answer in ways.items():
                found.setdefault(name, []).append(answer(prompt))
    return found


def token_by_token(session: Session, ends: list[int], prompt: str) -> Answer:
    ids = session.tokenize(prompt)
    session.clear()
    start = time.perf_counter()
    found = [int(session.feed(ids).argmax())]
    while found[-1] not in ends and len(found) < MAX_TOKENS:
        found.append(int(session.feed(found[-1:]).argmax()))
    seconds = time.perf_counter() - start
    # the prompt's pass predicts the first token
    return _answer(session, found, found[-1] in ends, len(found), seconds)


def in_blocks(session: BlockSession, ends: list[int], rule: BlockRule, prompt: str) -> Answer:
    ids = session.tokenize(prompt)
    session.clear()
    start = time.perf_counter()
    decoding = BlockDecoding(
        session,
        ids,
        session.diffusion,
        rule=rule,
        ends=ends,
        max_tokens=MAX_TOKENS,
        n_ctx=session.n_ctx,
    )
    found = list(decoding)
    seconds = time.perf_counter() - start
    ended = decoding.finish_reason == "stop"
    return _answer(session, found + ends[:ended], ended, decoding.passes, seconds)


def _answer(session: Session, found: Sequence[int], ended: bool, passes: int, seconds: float) -> Answer:
    pieces = b"".join(session.piece(token, special=False) for token in found)
    return Answer(pieces.decode("utf-8", "replace"), ended, len(found), passes, seconds)


def table(found: dict[str, list[Answer]], references: Sequence[str]) -> str:
    plain = next(iter(found.values()))
    rows = [HEADER, ["---"] * len(HEADER)]
    for name, answers in found.items():
        tokens = sum(answer.tokens for answer in answers)
        scores = translation(
            [answer.text for answer in answers],
            references,
            ended=sum(answer.ended for answer in answers),
            tokens=tokens,
        )
        ratios = [_speed(answers[part::PARTS]) / _speed(plain[part::PARTS]) for part in range(PARTS)]
        times = f"{_speed(answers) / _speed(plain):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        per_pass = tokens / sum(answer.passes for answer in answers)
        speed = f"{_speed(answers):,.0f} tokens/s" if answers is plain else times
        rows.append(
            [name, f"{scores.bleu:.2f}", f"{scores.chrf:.2f}", f"{tokens:,}", f"{per_pass:.2f}", speed]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _speed(answers: Sequence[Answer]) -> float:
    """Tokens per second."""
    return sum(answer.tokens for answer in answers) / sum(answer.seconds for answer in answers)


def _train() -> Path:
    config = load_config(EXAMPLE / "block.toml", run_dir=str(OUT / "block"), student=str(EXAMPLE))
    return train(config, "3", resume=True, say=lambda text: print(text, file=sys.stderr, flush=True))


if __name__ == "__main__":
    main()
