"""``bitexport bench``: tokens per second, compared with the machine's limits, other types or programs."""

from bitexport.bench.comparison import compare
from bitexport.bench.measure import bench
from bitexport.bench.report import BenchReport, BenchRow, CompareReport, CompareRow, PeerReport

__all__ = ["BenchReport", "BenchRow", "CompareReport", "CompareRow", "PeerReport", "bench", "compare"]
