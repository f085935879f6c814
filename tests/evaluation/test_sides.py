"""Every side against slow, independent arithmetic, and against the other sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

from bitexport.errors import CheckpointError
from bitexport.evaluation.cpp_side import CppSide
from bitexport.evaluation.driver import mean_cosine
from bitexport.evaluation.items import Item, pair_items, text_items
from bitexport.evaluation.python_side import PythonSide
from bitexport.evaluation.side import Side
from bitexport.metrics.likelihood import PredictionScore
from bitexport.progress import ignore
from bitexport.reference import load_reference
from tests.evaluation.conftest import PAIRS, SHAPE
from tests.support.tiny_models import TEXT


def items_of(side: Side) -> list[Item]:
    assert side.end is not None
    return pair_items(PAIRS, side.encode, side.end, side.n_ctx)


def test_distinguishes_float_from_ternary(teacher: Path, student: Path) -> None:
    assert PythonSide("teacher", teacher).kind == "float"
    side = PythonSide("student", student)
    assert (side.kind, side.n_vocab, side.n_ctx, side.end) == ("ternary", SHAPE.vocab, SHAPE.context, 1)


def test_a_model_without_a_context_length(tmp_path: Path) -> None:
    BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    with pytest.raises(CheckpointError, match="vocab_size 64 and max_position_embeddings None; expected"):
        PythonSide("teacher", tmp_path)


def test_float_teacher_against_a_loop_in_float64(teacher: Path) -> None:
    """Perplexity and accuracy by definition: one token at a time, without batches or the code for windows."""
    side = PythonSide("teacher", teacher)
    items = items_of(side)
    with side.open(SHAPE.context) as runner:
        tally = runner.score(items, ignore)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64, attn_implementation="eager")
    loss, right, count = 0.0, 0, 0
    with torch.no_grad():
        for pair in PAIRS:
            ids = side.encode(pair.prompt, True)
            for target in [*side.encode(pair.answer, False), 1]:
                row = model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()
                top = max(row)
                loss += top + math.log(sum(math.exp(value - top) for value in row)) - row[target]
                right += row.index(top) == target
                count += 1
                ids.append(target)
    assert (tally.tokens, tally.hits) == (count, right)
    assert tally.perplexity == pytest.approx(math.exp(loss / count), rel=1e-5)
    assert tally.accuracy == right / count


def test_ternary_student_against_the_reference(student: Path) -> None:
    """The side quantizes weights once and runs batches; the reference quantizes in every single pass."""
    side = PythonSide("student", student)
    items = items_of(side)
    with side.open(SHAPE.context) as runner:
        tally = runner.score(items, ignore)
    reference = load_reference(student)
    expected = PredictionScore()
    for item in items:
        rows = reference.logits(item.ids)[item.first - 1 : -1]
        expected.add(rows, np.asarray(item.ids[item.first :]))
    assert (tally.tokens, tally.hits) == (expected.tokens, expected.hits)
    assert tally.loss == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_batched_answers_equal_those_of_single_prompts(which: str, request: pytest.FixtureRequest) -> None:
    side = PythonSide("student", request.getfixturevalue(which))
    prompts = [item.ids[: item.first] for item in items_of(side)]
    assert len({len(prompt) for prompt in prompts}) == len(prompts)  # so that there is padding
    with side.open(SHAPE.context) as runner:
        free = runner.greedy(prompts, frozenset(), 12, ignore)
        ends = frozenset({free[1][4], free[3][0]})  # tokens that do appear, so that some end early
        together = runner.greedy(prompts, ends, 12, ignore)
        alone = [runner.greedy([prompt], ends, 12, ignore)[0] for prompt in prompts]
    assert [len(answer) for answer in free] == [12] * len(prompts)
    assert together == alone
    for ids, unlimited in zip(together, free, strict=True):
        stop = next((n for n, token in enumerate(unlimited, start=1) if token in ends), 12)
        assert ids == unlimited[:stop]


def test_answers_stop_at_the_end_of_the_context(teacher: Path, student_gguf: Path) -> None:
    for side in (PythonSide("teacher", teacher), CppSide("student", student_gguf)):
        with side.open(10) as runner:
            found = runner.greedy([[5] * 4, [6] * 8], frozenset(), 50, ignore)
        assert [len(answer) for answer in found] == [6, 2]
        side.close()


def test_cpp_against_python(student: Path, student_gguf: Path) -> None:
    python, cpp = PythonSide("student", student), CppSide("student", student_gguf)
    assert (cpp.n_vocab, cpp.n_ctx, cpp.end) == (python.n_vocab, python.n_ctx, python.end)
    for pair in PAIRS:
        for text in (pair.prompt, pair.answer):
            for special in (True, False):
                assert cpp.encode(text, special) == python.encode(text, special)
    for items in (items_of(python), text_items("".join(TEXT), python.encode, SHAPE.context)):
        with python.open(SHAPE.context) as runner:
            in_python = runner.score(items, ignore)
        with cpp.open(SHAPE.context) as other:
            in_cpp = other.score(items, ignore)
        assert in_python.tokens == in_cpp.tokens == sum(len(item.ids) - item.first for item in items)
        assert in_cpp.perplexity / in_python.perplexity == pytest.approx(1, abs=0.01)
        assert abs(in_cpp.hits - in_python.hits) <= 0.01 * in_python.tokens
    cpp.close()


def test_cpp_answers_equal_python_answers(
    checkpoint_of: Callable[..., Path], gguf_of: Callable[..., Path]
) -> None:
    """With an untied head the logits are large, and the answers vary."""
    options = {"architecture": "llama-student", "tied": False}
    checkpoint = checkpoint_of("master", **options)
    python = PythonSide("student", checkpoint)
    cpp = CppSide("student", gguf_of("master", **options))
    prompts = [item.ids[: item.first] for item in items_of(python)]
    with python.open(SHAPE.context) as runner:
        answers = runner.greedy(prompts, python.ends, 12, ignore)
    beginnings = [
        prompt + answer[:count]
        for prompt, answer in zip(prompts, answers, strict=True)
        for count in range(len(answer))
    ]
    tokens = [token for answer in answers for token in answer]
    with cpp.open(SHAPE.context) as other:
        in_cpp = other.greedy(prompts, python.ends, 12, ignore)
        single = [found[0] for found in other.greedy(beginnings, frozenset(), 1, ignore)]
    clear = [is_clear(row) for row in map(load_reference(checkpoint).logits, beginnings)]
    for wide, ours, theirs in zip(clear, tokens, single, strict=True):
        assert not wide or ours == theirs
    assert sum(clear) > len(tokens) / 3
    assert len(set(tokens)) > len(prompts)
    # One long answer follows from its single steps, unless two tokens were nearly equal somewhere.
    for begin, answer, found in zip(np.cumsum([0, *map(len, answers[:-1])]), answers, in_cpp, strict=True):
        same = next((n for n in range(len(answer)) if single[begin + n] != answer[n]), len(answer))
        assert found[:same] == answer[:same]
    cpp.close()


def is_clear(logits: np.ndarray) -> bool:
    """Whether the best token leads by more than float16 attention and a head in 8 bits may move two logits.

    They move single logits of a model of this size by up to 0.8.
    """
    second, first = np.sort(logits[-1])[-2:]
    return bool(first - second > 1.6)


def test_special_tokens_are_parsed_and_not_decoded(student: Path, student_gguf: Path) -> None:
    for side in (PythonSide("student", student), CppSide("student", student_gguf)):
        ids = side.encode("<|pad|>for <tool> é", True)
        assert ids[:2] == [0, 2]
        assert side.decode([*ids, 1]) == "for <tool> é"
        side.close()


def test_mean_hidden_states_exclude_padding(teacher: Path) -> None:
    side = PythonSide("teacher", teacher)
    sequences = [[5, 6, 7], [8] * 20, [9, 10]]
    with side.open(SHAPE.context) as runner:
        found = runner.embed(sequences, ignore)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, attn_implementation="eager")
    assert found.shape == (3, SHAPE.hidden)
    with torch.no_grad():
        for row, ids in zip(found, sequences, strict=True):
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
            np.testing.assert_allclose(row, states.mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)


def test_mean_cosine() -> None:
    first = np.array([[1, 0], [3, 3]], dtype=np.float32)
    second = np.array([[0, 2], [1, 1]], dtype=np.float32)
    assert mean_cosine(first, first) == pytest.approx(1)
    assert mean_cosine(first, second) == pytest.approx(0.5)
