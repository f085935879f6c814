"""Tokens a second: against the machine's own limits, and against other types of the same model."""

from bitexport.bench.measure import BenchReport, BenchRow, bench

__all__ = ["BenchReport", "BenchRow", "bench"]
