"""``bitexport bench``: tokens per second, compared with the machine's limits or with other types."""

from bitexport.bench.comparison import compare
from bitexport.bench.drafts import DraftReport, DraftRow, bench_drafts
from bitexport.bench.measure import bench
from bitexport.bench.report import BenchReport, BenchRow, CompareReport, CompareRow

__all__ = [
    "BenchReport",
    "BenchRow",
    "CompareReport",
    "CompareRow",
    "DraftReport",
    "DraftRow",
    "bench",
    "bench_drafts",
    "compare",
]
