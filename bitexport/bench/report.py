"""The results of ``bitexport bench``, of one file or of a comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bitexport.bench.limits import MAX_CHANGE

#: More than the share of the last-level cache that a few threads have.
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One test at one thread count.

    Attributes:
        test: ``pp128`` for a prompt of 128 tokens at once, ``tg32`` for 32 tokens one by one.
        batch: number of sequences decoded together (``B`` in llama-batched-bench).
        threads: number of threads.
        tokens_per_second, stddev: mean and sample standard deviation over the repetitions; for a batch, of
            all sequences together.
        memory_read_gbps: how fast the same number of threads reads memory, measured in the same run, in 1e9
            bytes/s; decode only.
        percent_of_bandwidth: the speed of reading the weights at every step, in percent of that; decode only.
        multiply_add_gps: how many multiply-adds the same number of threads does with the kernels' own
            instruction, measured in the same run, in 1e9 per second; for prefill, and decode in batches. None
            if the kernels have no such instruction.
        percent_of_multiply_adds: the multiply-adds of the layers' matrices, in percent of that.
        fair_share: the share of a processor that is fair for each thread beside the busy processes.
        limit_change: by how much the machine's limits before and after the test differ, as a fraction.
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
    fair_share: float = 1.0

    @property
    def disturbed(self) -> bool:
        """Whether the machine's limits moved so much during the test that the row means little."""
        return self.limit_change > MAX_CHANGE

    @property
    def percent_of_limit(self) -> float | None:
        """Percent of the nearer limit that was reached; None if no limit is known."""
        known = [self.percent_of_bandwidth, self.percent_of_multiply_adds]
        return max((percent for percent in known if percent is not None), default=None)

    @property
    def limit_tokens_per_second(self) -> float | None:
        """The nearer limit itself: the tokens per second at 100%."""
        percent = self.percent_of_limit
        return 100 * self.tokens_per_second / percent if percent else None


@dataclass(frozen=True, slots=True)
class BenchMachine:
    """One of several machines that computed a model together.

    Attributes:
        name: ``"this machine"``, or a worker's address.
        layers: that it computed.
        threads, tier: with which it computed; for this machine the most of all rows.
    """

    name: str
    layers: int
    threads: int
    tier: str


@dataclass(frozen=True)
class BenchReport:
    """What :func:`~bitexport.bench.measure.bench` measured.

    Attributes:
        path: the file.
        model: llama.cpp's description of it.
        tier: the kernels that ran.
        parameters: number of weights in the model.
        weight_bytes: bytes of its tensors in the file.
        file_bytes_per_token: the bytes of these that a decoded token reads: all but an embedding that is only
            looked up.
        bytes_per_token: the same in the layout in memory, which is what the kernels read.
        multiply_adds_per_token: one for each weight of the layers' matrices; without the head and attention.
        rows: in the order of measurement.
        load_seconds: from the file in the page cache to a context ready to run.
        rss_bytes: memory of the process after the model was loaded and run.
        rss_before_bytes: memory of the process before the model was loaded.
        cpu: the CPU's name.
        fingerprint: of the file, see :func:`bitexport.gguf.fingerprint.fingerprint`.
        machines: those that computed together; empty for this one alone. Then no limits are known.
        load: the number of busy processes beside the measurement; they pause while limits are measured.
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
    cpu: str = ""
    fingerprint: str = ""
    machines: list[BenchMachine] = field(default_factory=list)
    load: int = 0

    @property
    def fits_caches(self) -> bool:
        """Whether a token reads so few bytes that they may all come from caches."""
        return self.bytes_per_token < _CACHE_BYTES

    @property
    def fastest_decode(self) -> BenchRow | None:
        """The decode row for one sequence with the most tokens per second."""
        decodes = [row for row in self.rows if row.memory_read_gbps is not None and row.batch == 1]
        return max(decodes, key=lambda row: row.tokens_per_second, default=None)

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``.

        The overall memory speed and percentage are those of the fastest decode row.
        """
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
        type: the compared file's, such as ``"i2_s"``, the twin's, or the name of another program.
        test, threads: as in :class:`BenchRow`.
        tokens_per_second: the median of the rounds.
        ratio, ratio_min, ratio_max: how many times as fast the compared file is: median and range of the
            ratios within each round. None for that file itself.
        ratio_low, ratio_high, confidence: an interval that has the true median with this confidence; see
            :func:`~bitexport.bench.intervals.median_interval`.
        fair_share: the share of a processor that is fair for each thread beside the busy processes.
        rounds: number of rounds that count.
        disturbed_rounds: number of rounds in which the machine's limits moved. They are discarded, unless
            that would discard all of them.
        disturbed: whether all rounds were disturbed, so that the row means little.
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
    ratio_low: float | None = None
    ratio_high: float | None = None
    confidence: float | None = None
    fair_share: float = 1.0


@dataclass(frozen=True, slots=True)
class PeerReport:
    """Another program in a comparison.

    Attributes:
        type: its name in the rows.
        command: its command line, without what was added to it.
        model, build: what it says it ran, and its version; empty if it does not say.
    """

    type: str
    command: str
    model: str
    build: str


@dataclass(frozen=True, slots=True)
class CompareReport:
    """What :func:`~bitexport.bench.comparison.compare` measured.

    Attributes:
        path: the compared file.
        model: llama.cpp's description of it.
        tier: the ternary kernels that ran. Only the compared file uses them: its twins run on the instruction
            sets that ggml itself was built for.
        tier_forced: whether ``BITEXPORT_TIER`` chose the tier; it does not restrict the twins.
        bytes: of each file's tensors, by type.
        rows: in the order of measurement.
        kept: the twins' files, if they were kept.
        cpu: the CPU's name.
        fingerprint: of the compared file.
        peers: the other programs.
        load: the number of busy processes beside the measurement.
    """

    path: str
    model: str
    tier: str
    tier_forced: bool
    bytes: dict[str, int]
    rows: list[CompareRow]
    kept: list[str]
    cpu: str = ""
    fingerprint: str = ""
    peers: list[PeerReport] = field(default_factory=list)
    load: int = 0

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object, without ``schema``."""
        return {"comparison": True, **asdict(self)}
