"""Tokens a second: against the machine's own limits, and against other types of the same model."""

from bitexport.bench.compare import CompareReport, CompareRow, compare
from bitexport.bench.measure import BenchReport, BenchRow, bench

__all__ = ["BenchReport", "BenchRow", "CompareReport", "CompareRow", "bench", "compare"]
