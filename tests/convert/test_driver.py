"""The one loop, over a source in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitexport.convert.driver import convert_source
from bitexport.convert.encoding import TensorStatistics, encode_float, encode_ternary
from bitexport.convert.source import PlannedTensor, SourceSummary
from bitexport.errors import BitexportError, CheckpointError, OutputError
from bitexport.gguf.reader import read_gguf
from bitexport.gguf.types import F16, I2_S
from bitexport.gguf.writer import MetadataValue, TensorSpec
from bitexport.health import Health
from bitexport.progress import ProgressEvent
from bitexport.ternary import TernaryTensor


class MemorySource:
    """One ternary tensor, one float tensor of two rows in two pieces, and an extra one."""

    architecture = "llama"

    def __init__(self, *, sound: bool = True, refuse_file: bool = False) -> None:
        trits = np.tile(np.array([1, 0, -1, 1] if sound else [0] * 4, np.int8), (2, 64))
        self.values: dict[str, Any] = {
            "a.weight": TernaryTensor(trits, np.float32(0.5)),
            "b.weight": np.array([[1, 1e-9], [3, 4]], np.float32),
        }
        self.metadata: Mapping[str, MetadataValue] = {"general.file_type": 40}
        self.tensors: Sequence[PlannedTensor[str]] = [
            PlannedTensor("a.weight", TensorSpec("a", (2, 256), I2_S), ternary=True, source_bytes=128),
            PlannedTensor("b.weight", TensorSpec("b", (2, 2), F16), ternary=False, source_bytes=16),
        ]
        self.extra_tensors: Mapping[str, np.ndarray] = {"extra": np.ones(3, np.float32)}
        self.warnings: Sequence[str] = ["planned"]
        self.summary = SourceSummary(144, "memory", "i2_s", "f16", "gpt2", "gpt-2", 10, 2)
        self.health = Health()
        self.refuse_file = refuse_file

    def encode_tensor(self, tensor: PlannedTensor[str], statistics: TensorStatistics) -> Iterator[np.ndarray]:
        values = self.values[tensor.origin]
        if tensor.ternary:
            self.health.ternary(tensor.origin, values)
            yield encode_ternary(tensor.spec, values, statistics)
        else:
            for row in values:
                yield encode_float(tensor.spec, row[None], statistics)

    def check_written(self, path: Path) -> list[str]:
        if self.refuse_file:
            raise CheckpointError(f"refused {len(read_gguf(path).tensors)} tensors")
        return ["checked"]

    def final_warnings(self, statistics: Mapping[str, TensorStatistics]) -> list[str]:
        return [f"{name}: {seen.flushed} of {seen.weights}" for name, seen in statistics.items()]


def test_the_report_and_the_file(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    report = convert_source(MemorySource(), tmp_path / "x.gguf", progress=events.append)
    names = [(t.name, t.type.name) for t in read_gguf(tmp_path / "x.gguf").tensors]
    assert names == [("extra", "f32"), ("a", "i2_s"), ("b", "f16")]
    assert (report.tensors, report.ternary_tensors, report.input_bytes) == (3, 1, 144)
    assert report.output_bytes == (tmp_path / "x.gguf").stat().st_size
    assert report.warnings == ["planned", "a: 0 of 512", "b: 1 of 4", "checked"]
    ternary, floats = report.types
    assert (ternary.type, ternary.zero_fraction, ternary.scale_min, ternary.scale_max) == (
        "i2_s",
        0.25,
        0.5,
        0.5,
    )
    assert (ternary.bytes_before, ternary.bytes_after, ternary.scale_rounding) == (128, 160, 0)
    assert (floats.tensors, floats.weights, floats.bits_per_weight) == (1, 4, 16)
    assert (floats.zero_fraction, floats.scale_min, floats.scale_max, floats.scale_rounding) == (None,) * 4
    assert [(event.done, event.label) for event in events] == [
        (0, "0/2 a"),
        (128, "0/2 a"),
        (128, "1/2 b"),
        (136, "1/2 b"),
        (144, "1/2 b"),
    ]


def test_a_dry_run_reports_the_same(tmp_path: Path) -> None:
    written = convert_source(MemorySource(), tmp_path / "x.gguf")
    dry = convert_source(MemorySource(), tmp_path / "none" / "x.gguf", dry_run=True)
    assert not (tmp_path / "none").exists()
    assert dry.types == written.types
    assert dry.warnings == written.warnings[:-1]
    assert dry.output_bytes == 12 + 160 + 8


@pytest.mark.parametrize("dry_run", [False, True])
def test_strict(tmp_path: Path, dry_run: bool) -> None:
    with pytest.raises(CheckpointError, match=r"--strict: .*all-zero"):
        convert_source(MemorySource(sound=False), tmp_path / "x.gguf", strict=True, dry_run=dry_run)
    assert list(tmp_path.iterdir()) == []
    report = convert_source(MemorySource(sound=False), tmp_path / "x.gguf")
    assert [finding.name for finding in report.health] == ["all-zero"]
    assert report.warnings[-1].endswith("[all-zero]")


def test_a_file_that_fails_its_check_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(BitexportError, match="refused 3 tensors"):
        convert_source(MemorySource(refuse_file=True), tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(OutputError, match=r"x\.gguf already exists; use --force"):
        convert_source(MemorySource(), tmp_path / "x.gguf")
    with pytest.raises(BitexportError, match="refused 3 tensors"):
        convert_source(MemorySource(refuse_file=True), tmp_path / "x.gguf", force=True)
    assert (tmp_path / "x.gguf").read_text() == "mine"
