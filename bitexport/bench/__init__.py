"""``bitexport bench``: tokens per second, compared with the machine's limits, other types or programs."""

from bitexport.bench.comparison import compare
from bitexport.bench.drafts import DraftReport, DraftRow, bench_drafts
from bitexport.bench.measure import bench
from bitexport.bench.report import BenchReport, BenchRow, CompareReport, CompareRow, PeerReport

__all__ = [
    "BenchReport",
    "BenchRow",
    "CompareReport",
    "CompareRow",
    "DraftReport",
    "DraftRow",
    "PeerReport",
    "bench",
    "bench_drafts",
    "compare",
]
