"""``convert`` of mixtures of experts: from any ternary type to any other, the router unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitexport.bench.weights import token_cost
from bitexport.convert import convert
from bitexport.convert.choices import TERNARY_TYPES, check_fits
from bitexport.errors import UnsupportedError
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import I2_S, TensorType
from bitexport.gguf.writer import RawValue
from bitexport.health.scan import scan_gguf
from bitexport.runtime.session import Session
from tests.support.gguf_files import rewritten, tensors_of, values
from tests.support.tiny_experts import FFN, HIDDEN, SCALE, qwen3_moe


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3_moe(tmp_path_factory.mktemp("moe") / "f16.gguf", layers=1)


def contents(path: Path) -> dict[str, object]:
    """Everything but the order of the tensors' bytes: types, shapes, bytes, and the metadata."""
    file = read_gguf(path)
    return {**tensors_of(path), **{key: file.raw(key) for key in file.metadata}}


@pytest.mark.parametrize("source", TERNARY_TYPES)
def test_every_type_to_every_other(source: str, floats: Path, tmp_path: Path) -> None:
    convert(floats, tmp_path / "source.gguf", type=source)
    original = read_gguf(floats)
    for target in TERNARY_TYPES:
        report = convert(tmp_path / "source.gguf", tmp_path / "x.gguf", type=target, force=True)
        assert report.warnings == []
        file = read_gguf(tmp_path / "x.gguf")
        for tensor in original.tensors:
            np.testing.assert_array_equal(values(file, tensor.name), values(original, tensor.name))
        kinds = {tensor.name: tensor.type.name for tensor in file.tensors}
        assert {kinds[f"blk.0.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")} == {target}
        assert kinds["blk.0.ffn_gate_inp.weight"] == "f32"
    convert(tmp_path / "x.gguf", tmp_path / "back.gguf", type=source)
    assert contents(tmp_path / "back.gguf") == contents(tmp_path / "source.gguf")


@pytest.mark.parametrize("source", ["f16", "q2_0", "tq2_0"])
def test_experts_with_scales_of_their_own(source: str, tmp_path: Path) -> None:
    """I2_S has one scale for all experts; each of the types that the message names holds these exactly."""
    floats = qwen3_moe(tmp_path / "f16.gguf", layers=1, expert_scales=True)
    convert(floats, tmp_path / "source.gguf", type=source)
    with pytest.raises(UnsupportedError) as caught:
        convert(tmp_path / "source.gguf", tmp_path / "x.gguf", type="i2_s")
    message = str(caught.value)
    assert message.startswith(
        "tensor 'blk.0.ffn_gate_exps.weight' has a scale per row, but i2_s has one scale per tensor; use "
    )
    assert not (tmp_path / "x.gguf").exists()
    advised = message.rsplit("--type ", 1)[1].split(" or ")
    assert {"q2_0", "f16"} <= set(advised)
    for kind in advised:
        convert(tmp_path / "source.gguf", tmp_path / f"{kind}.gguf", type=kind, force=True)
        found, expected = read_gguf(tmp_path / f"{kind}.gguf"), read_gguf(floats)
        for tensor in expected.tensors:
            np.testing.assert_array_equal(values(found, tensor.name), values(expected, tensor.name))
        with Session(tmp_path / f"{kind}.gguf", n_ctx=64) as session:
            assert np.isfinite(session.logits([3, 4, 5])).all()


def test_an_expert_that_is_not_whole_blocks() -> None:
    with pytest.raises(
        UnsupportedError, match=r"'x' .*cannot be i2_s.*\(in each expert\).*; use --type f16$"
    ):
        check_fits("x", (32, 30, 132), I2_S, embedding=False, target="blk.0.ffn_up_exps.weight")


def test_other_tensors_of_three_dimensions_cannot_be_i2_s(floats: Path, tmp_path: Path) -> None:
    """Such as those of multi-head latent attention, which ggml multiplies one matrix at a time."""

    content = floats.read_bytes()
    (tmp_path / "x.gguf").write_bytes(content.replace(b".ffn_gate_exps.", b".attn_k_b_part."))
    with pytest.raises(UnsupportedError) as caught:
        convert(tmp_path / "x.gguf", tmp_path / "y.gguf", type="i2_s")
    assert "only for matrices and for the experts of a mixture" in str(caught.value)
    for kind in str(caught.value).rsplit("--type ", 1)[1].split(" or "):
        convert(tmp_path / "x.gguf", tmp_path / f"{kind}.gguf", type=kind)


def test_health_and_bench_see_the_experts(floats: Path, tmp_path: Path) -> None:
    """An expert that is all zeros has dead rows; a token uses two experts of eight."""
    convert(floats, tmp_path / "x.gguf", type="i2_s")
    assert scan_gguf(read_gguf(tmp_path / "x.gguf")) == []

    def without_an_expert(
        tensor: object, kind: TensorType, data: np.ndarray
    ) -> tuple[TensorType, np.ndarray]:
        if kind is I2_S and len(tensor.shape) == 3:  # type: ignore[attr-defined]
            data[: (len(data) - 32) // 8] = 0b01010101
        return kind, data

    dead = rewritten(tmp_path / "x.gguf", tmp_path / "dead.gguf", change=without_an_expert)
    (finding,) = scan_gguf(read_gguf(dead))
    assert finding.name == "dead-rows"

    cost = token_cost(tmp_path / "x.gguf")
    attention = 4 * HIDDEN * HIDDEN
    assert cost.multiply_adds == attention + 8 * HIDDEN + 2 * 3 * FFN * HIDDEN
    whole = token_cost(
        rewritten(
            tmp_path / "x.gguf",
            tmp_path / "all.gguf",
            metadata={"qwen3moe.expert_used_count": RawValue(b"\x04\0\0\0\x08\0\0\0")},
        )
    )
    experts = 8 * 3 * FFN * HIDDEN
    assert whole.multiply_adds - cost.multiply_adds == experts * 6 // 8
    assert whole.file_bytes - cost.file_bytes == 3 * ((8 * FFN * HIDDEN // 4 + 32) * 6 // 8)


def test_the_scale_of_experts_stays_one(floats: Path, tmp_path: Path) -> None:
    report = convert(floats, tmp_path / "x.gguf", type="i2_s")
    (row,) = [row for row in report.types if row.zero_fraction is not None]
    assert (row.scale_min, row.scale_max) == (SCALE, SCALE)
