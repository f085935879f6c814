"""Attention on our kernels, of one token and of prompts: the same as llama.cpp's, at every context length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitexport.convert import convert
from tests.integration.test_head import run
from tests.support.tiny_models import Shape

# Five tokens at once, then 60 one by one, with the settings of an ordinary context.
DECODE = """
import sys
import numpy as np
from bitexport.runtime.session import Session
with Session(sys.argv[1], n_ctx=128, n_threads=int(sys.argv[3]), exact=False) as session:
    session.advance([7, 8, 9, 10, 11])
    np.save(sys.argv[2], np.stack([session.feed([3 + i * 5 % 200]) for i in range(60)]))
"""


# Ninety tokens at once, then 40 behind them.
PREFILL = """
import sys
import numpy as np
from bitexport.runtime.session import Session
ids = [3 + i * 5 % 200 for i in range(130)]
with Session(sys.argv[1], n_ctx=256, n_threads=int(sys.argv[3]), exact=False) as session:
    parts = [*session.logits_in_parts(ids[:90]), *session.logits_in_parts(ids[90:])]
np.save(sys.argv[2], np.concatenate(parts))
"""


def decoded(gguf: Path, threads: int, *, program: str = DECODE, **environment: str) -> np.ndarray:
    """Float32 [tokens, vocab]."""
    target = gguf.with_suffix(".npy")
    done = run("-c", program, gguf, target, str(threads), **environment)
    assert done.returncode == 0, done.stderr
    return np.load(target)


@pytest.fixture(scope="module", params=[(4, 2, 64), (6, 1, 48), (2, 2, 128)], ids=str)
def float_model(
    request: pytest.FixtureRequest,
    checkpoint_of: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Without ternary weights, whose 8-bit rounding would amplify the smallest difference."""
    heads, kv_heads, head_dim = request.param
    shape = Shape(hidden=heads * head_dim, ffn=256, heads=heads, kv_heads=kv_heads)
    gguf = tmp_path_factory.mktemp("gguf") / "float.gguf"
    convert(checkpoint_of("packed-multiply", shape=shape), gguf, type="f16", embed_type="f16")
    return gguf


@pytest.mark.parametrize("program", [DECODE, PREFILL], ids=["decode", "prefill"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_numbers_equal_those_of_llama_cpp(float_model: Path, threads: int, program: str) -> None:
    ours = decoded(float_model, threads, program=program)
    stock = decoded(float_model, threads, program=program, BITEXPORT_ATTENTION="stock")
    assert ours.tobytes() != stock.tobytes(), "both are llama.cpp's: ours did not run"
    # llama.cpp accumulates in float16
    assert np.abs(ours - stock).max() < 5e-3 * np.abs(stock).max()


@pytest.mark.parametrize("program", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_the_number_of_threads_does_not_change_the_result(float_model: Path, program: str) -> None:
    alone = decoded(float_model, 1, program=program).tobytes()
    assert all(decoded(float_model, threads, program=program).tobytes() == alone for threads in (2, 3, 5))


def test_another_value_of_the_override_is_an_error(float_model: Path) -> None:
    done = run("-m", "bitexport", "run", float_model, "--prompt", "x", BITEXPORT_ATTENTION="fast")
    assert done.returncode == 1
    assert "BITEXPORT_ATTENTION is 'fast'; expected 'stock'" in done.stderr


# Forty steps of three sequences: together, and each alone.
TOGETHER = """
import sys
import numpy as np
from bitexport.runtime.session import Session
tokens = np.array([[3 + step * 5 % 200, 50 + step, 120 - step] for step in range(40)])
threads = int(sys.argv[3])
rows = []
with Session(sys.argv[1], n_ctx=128, n_threads=threads, exact=False) as session:
    for chosen in (tokens, tokens[:, :1], tokens[:, 1:2], tokens[:, 2:]):
        session.reopen(128, threads, chosen.shape[1])
        for step in chosen:
            session.advance_together(step.tolist())
            logits = session._api.llama_get_logits(session._context)
            rows.append(np.ctypeslib.as_array(logits, shape=(len(step), session.n_vocab)).copy())
together, alone = rows[:40], rows[40:]
np.savez(sys.argv[2], together=together, alone=np.concatenate([alone[:40], alone[40:80], alone[80:]], axis=1))
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_a_sequence_gets_the_same_numbers_among_others(
    checkpoint_of: Callable[..., Path], tmp_path: Path, threads: int
) -> None:
    """With our head, too, nothing depends on what else is in the batch: to the last bit."""
    gguf = tmp_path / "model.gguf"
    convert(checkpoint_of("packed-multiply"), gguf, embed_type="q6_k")
    done = run("-c", TOGETHER, gguf, tmp_path / "rows.npz", str(threads))
    assert done.returncode == 0, done.stderr
    rows = np.load(tmp_path / "rows.npz")
    assert rows["together"].shape == (40, 3, rows["alone"].shape[-1])
    assert rows["together"].tobytes() == rows["alone"].tobytes()
    assert not np.array_equal(rows["alone"][:, 0], rows["alone"][:, 1])


# Tokens of one sequence: one by one, and in passes of several, some of which are removed again.
IN_PASSES = """
import sys
import numpy as np
from bitexport.runtime.session import Session
draw = np.random.default_rng(0)
text = draw.integers(3, 200, 640).tolist()
with Session(sys.argv[1], n_ctx=768, n_threads=int(sys.argv[3]), exact=False) as session:
    memory = session._api.llama_get_memory(session._context)
    rows = {}
    for begin in (3, 40, 490):  # parts of the context get longer at 512
        session.clear()
        session.advance(text[:begin])
        alone = np.stack([session.feed([token]) for token in text[begin : begin + 64]])
        for size in (2, 3, 7, 8, 16, 31, 32):
            session.clear()
            session.advance(text[:begin])
            found = []
            for at in range(begin, begin + 64, size):
                part = text[at : min(at + size, begin + 64)]
                wrong = draw.integers(3, 200, 32 - len(part)).tolist()
                logits = np.concatenate(list(session.logits_in_parts([*part, *wrong])))
                found.append(logits[: len(part)])
                session._api.llama_memory_seq_rm(memory, 0, at + len(part), -1)
                session._used = at + len(part)
            rows[f"{begin} {size}"] = np.stack([alone, np.concatenate(found)])
np.savez(sys.argv[2], **rows)
"""


@pytest.mark.parametrize("threads", [1, 3])
def test_a_token_gets_the_same_numbers_in_a_pass_of_several(
    checkpoint_of: Callable[..., Path], tmp_path: Path, threads: int
) -> None:
    """What drafts need: to the last bit, whatever else is in the pass, and after wrong tokens are removed."""
    gguf = tmp_path / "model.gguf"
    convert(checkpoint_of("packed-multiply", shape=Shape(context=1024)), gguf, embed_type="q6_k")
    done = run("-c", IN_PASSES, gguf, tmp_path / "rows.npz", str(threads))
    assert done.returncode == 0, done.stderr
    for name, (alone, together) in np.load(tmp_path / "rows.npz").items():
        assert together.tobytes() == alone.tobytes(), name
