"""Trains a student of block diffusion, English to French, and measures it; run by `make en-fr-blocks`.

It starts from a student of `make en-fr`. The table has BLEU and chrF of greedy answers, token by token and in
blocks by each rule, and the tokens that a pass settles. An existing model is measured without training.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitexport.blocks import BlockDecoding, BlockRule
from bitexport.convert import convert
from bitexport.evaluation import read_pairs
from bitexport.evaluation.translation import translation
from bitexport.runtime.block_session import BlockSession
from bitexport.runtime.session import Session
from bitexport.train import load_config, train

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out" / "en-fr"
RULES = (
    BlockRule("greedy"),
    BlockRule("confidence", 0.95),
    BlockRule("confidence", 0.9),
    BlockRule("confidence", 0.7),
    BlockRule("confidence", 0.5),
    BlockRule("adaptive", 0.9),
)
HEADER = ["decoding", "BLEU", "chrF", "tokens", "tokens/pass", "tokens/s"]
MAX_TOKENS = 96


@dataclass
class Answers:
    """The answers to all prompts, and what they cost."""

    texts: list[str]
    ended: int
    tokens: int
    passes: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a checkpoint to measure instead of training one")
    parser.add_argument("--held-out", type=Path, help="pairs of the run; those of the trained model's")
    parser.add_argument("--plain", type=Path, help="a GGUF file of the plain student, measured as well")
    parser.add_argument("--pairs", type=int, default=1000, help="held-out pairs to answer")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model = options.model or _train()
    held_out = options.held_out or OUT / "block" / "held_out.jsonl"
    gguf = model.parent / "block.gguf"
    convert(model, gguf, embed_type="f16", force=True)
    pairs = read_pairs(held_out, options.pairs)
    prompts = [pair.prompt for pair in pairs]
    references = [pair.answer for pair in pairs]
    rows = [HEADER]
    if options.plain:
        rows.append(
            _row("plain student", _token_by_token(options.plain, prompts, options.threads), references)
        )
    rows.append(_row("token by token", _token_by_token(gguf, prompts, options.threads), references))
    for rule in RULES:
        name = rule.name if rule.name == "greedy" else f"{rule.name} {rule.threshold:g}"
        rows.append(_row(name, _in_blocks(gguf, prompts, rule, options.threads), references))
    lines = [rows[0], ["---"] * len(HEADER), *rows[1:]]
    print("\n".join(f"| {' | '.join(row)} |" for row in lines))


def _train() -> Path:
    config = load_config(ROOT / "examples" / "en-fr" / "block.toml")
    return train(config, "3", resume=True, say=lambda text: print(text, file=sys.stderr, flush=True))


def _row(name: str, answers: Answers, references: Sequence[str]) -> list[str]:
    scores = translation(answers.texts, references, ended=answers.ended, tokens=answers.tokens)
    return [
        name,
        f"{scores.bleu:.2f}",
        f"{scores.chrf:.2f}",
        f"{answers.tokens:,}",
        f"{answers.tokens / answers.passes:.2f}",
        f"{answers.tokens / answers.seconds:,.0f}",
    ]


def _token_by_token(gguf: Path, prompts: Sequence[str], threads: int) -> Answers:
    answers = Answers([], 0, 0, 0, 0.0)
    with Session(gguf, exact=False, n_threads=threads) as session:
        ends = session.end_tokens()
        for prompt in prompts:
            ids = session.tokenize(prompt)
            start = time.perf_counter()
            session.clear()
            found = [int(session.feed(ids).argmax())]
            while found[-1] not in ends and len(found) < MAX_TOKENS:
                found.append(int(session.feed(found[-1:]).argmax()))
            answers.seconds += time.perf_counter() - start
            answers.passes += len(found)  # the prompt's pass predicts the first token
            _add(answers, session, found)
    return answers


def _in_blocks(gguf: Path, prompts: Sequence[str], rule: BlockRule, threads: int) -> Answers:
    answers = Answers([], 0, 0, 0, 0.0)
    with BlockSession(gguf, exact=False, n_threads=threads) as session:
        ends = session.end_tokens()
        for prompt in prompts:
            ids = session.tokenize(prompt)
            start = time.perf_counter()
            session.clear()
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
            answers.seconds += time.perf_counter() - start
            answers.passes += decoding.passes
            _add(answers, session, found + [ends[0]] * (decoding.finish_reason == "stop"))
    return answers


def _add(answers: Answers, session: Session, found: list[int]) -> None:
    """Add one answer; a token that ends it counts, as it takes a decision like any other."""
    answers.tokens += len(found)
    answers.ended += found[-1] in session.end_tokens()
    answers.texts.append(
        b"".join(session.piece(token, special=False) for token in found).decode("utf-8", "replace")
    )


if __name__ == "__main__":
    main()
