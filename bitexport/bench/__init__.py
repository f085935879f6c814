"""``bitexport bench``: tokens per second, compared with the machine's limits or with other types."""

from bitexport.bench.comparison import compare
from bitexport.bench.measure import bench
from bitexport.bench.report import BenchReport, BenchRow, CompareReport, CompareRow

__all__ = ["BenchReport", "BenchRow", "CompareReport", "CompareRow", "bench", "compare"]
