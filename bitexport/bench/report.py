"""The results of ``bitexport bench``, of one file or of a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bitexport.bench.limits import MAX_CHANGE

#: More than the last-level cache that a few threads can call their own.
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One test at one thread count.

    Attributes:
        test: ``pp128`` for a prompt of 128 tokens at once, ``tg32`` for 32 tokens one by one.
        batch: how many sequences were decoded together (``B`` of llama-batched-bench).
        threads: how many computed.
        tokens_per_second, stddev: mean and sample standard deviation over the repetitions; of all sequences
            of a batch together.
        memory_read_gbps: how fast as many threads read memory in the same run, 1e9 bytes/s; decode only.
        percent_of_bandwidth: how much of that the weights read for each step amount to; decode only.
        multiply_add_gps: how many 1e9 multiply-adds a second as many threads do in the kernels' own
            instruction, in the same run; prefill, and decode in batches. None where the kernels have no such
            instruction.
        percent_of_multiply_adds: how much of that the multiply-adds of the layers' matrices amount to.
        limit_change: how far the machine's limits before and after the test are apart, as a fraction.
    """

    test: str
    threads: int
    tokens_per_second: float
    stddev: float
    batch: int = 1
    memory_read_gbps: float | None = None
    percent_of_bandwidth: float | None = None
    multiply_add_gps: float | None = None
    percent_of_multiply_adds: float | None = None
    limit_change: float = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether the machine's limits moved so far during the test that the row means little."""
        return self.limit_change > MAX_CHANGE

    @property
    def percent_of_limit(self) -> float | None:
        """How much of the limit that is nearer was reached; None where none is known."""
        known = [self.percent_of_bandwidth, self.percent_of_multiply_adds]
        return max((percent for percent in known if percent is not None), default=None)

    @property
    def limit_tokens_per_second(self) -> float | None:
        """The nearer limit itself: tokens a second of 100%."""
        percent = self.percent_of_limit
        return 100 * self.tokens_per_second / percent if percent else None


@dataclass(frozen=True)
class BenchReport:
    """What :func:`~bitexport.bench.measure.bench` measured.

    Attributes:
        path: the file.
        model: what llama.cpp calls it.
        tier: the kernels that ran.
        parameters: weights in the model.
        weight_bytes: bytes of its tensors in the file.
        file_bytes_per_token: of these, what a decoded token reads: all but an embedding that is only looked
            up.
        bytes_per_token: the same in the layout that the weights have in memory, which is what the kernels
            read.
        multiply_adds_per_token: weights of the matrices in the layers, one multiply-add each; without the
            head and attention.
        rows: in the order of measurement.
        load_seconds: from the file, in the page cache, to a context that can run.
        rss_bytes: memory of the process with the model loaded and run.
        rss_before_bytes: memory of the process before it was loaded.
    """

    path: str
    model: str
    tier: str
    parameters: int
    weight_bytes: int
    file_bytes_per_token: int
    bytes_per_token: int
    multiply_adds_per_token: int
    rows: list[BenchRow]
    load_seconds: float
    rss_bytes: int
    rss_before_bytes: int

    @property
    def fits_caches(self) -> bool:
        """Whether a token reads so little that it may never come from memory."""
        return self.bytes_per_token < _CACHE_BYTES

    @property
    def fastest_decode(self) -> BenchRow | None:
        """The decode row, of one sequence, with the most tokens a second."""
        decodes = [row for row in self.rows if row.memory_read_gbps is not None and row.batch == 1]
        return max(decodes, key=lambda row: row.tokens_per_second, default=None)

    def to_json(self) -> dict[str, Any]:
        """The contract's keys, then more; memory speed and percentage are those of the fastest decode row."""
        fastest = self.fastest_decode
        document = asdict(self)
        del document["rows"]
        return {
            "model": document.pop("model"),
            "rows": [{**asdict(row), "disturbed": row.disturbed} for row in self.rows],
            "load_seconds": document.pop("load_seconds"),
            "rss_bytes": document.pop("rss_bytes"),
            "memory_read_gbps": fastest.memory_read_gbps if fastest else None,
            "percent_of_bandwidth": fastest.percent_of_bandwidth if fastest else None,
            "fits_caches": self.fits_caches,
            **document,
        }


@dataclass(frozen=True, slots=True)
class CompareRow:
    """One type in one test at one thread count.

    Attributes:
        type: ``"i2_s"``, or the twin's.
        test, threads: as in :class:`BenchRow`.
        tokens_per_second: the median of the rounds.
        ratio, ratio_min, ratio_max: how many times as fast the I2_S file is: the median of the rounds' own
            ratios, and their range. None for the I2_S file itself.
        rounds: how many counted.
        disturbed_rounds: how many were thrown away because the machine's limits moved during them. When
            that is all of them, all count, and the row means little.
        disturbed: whether that is so.
    """

    type: str
    test: str
    threads: int
    tokens_per_second: float
    ratio: float | None
    ratio_min: float | None
    ratio_max: float | None
    rounds: int
    disturbed_rounds: int
    disturbed: bool


@dataclass(frozen=True, slots=True)
class CompareReport:
    """What :func:`~bitexport.bench.comparison.compare` measured.

    Attributes:
        path: the I2_S file.
        model: what llama.cpp calls it.
        tier: the ternary kernels that ran. Only the I2_S file uses them: its twins run on what ggml itself
            was built for.
        tier_forced: whether ``BITEXPORT_TIER`` chose it; the twins are not held to it.
        bytes: of each file's tensors, by type.
        rows: in the order of measurement.
        kept: the twins' files, where they were to be kept.
    """

    path: str
    model: str
    tier: str
    tier_forced: bool
    bytes: dict[str, int]
    rows: list[CompareRow]
    kept: list[str]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return {"comparison": True, **asdict(self)}
