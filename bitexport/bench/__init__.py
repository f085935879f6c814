"""Tokens a second: against the machine's own limits, and against other types of the same model."""

from bitexport.bench.comparison import compare
from bitexport.bench.measure import bench
from bitexport.bench.report import BenchReport, BenchRow, CompareReport, CompareRow

__all__ = ["BenchReport", "BenchRow", "CompareReport", "CompareRow", "bench", "compare"]
