"""Memory and CPU: what this process uses, and what the machine and its container offer."""

from __future__ import annotations

import platform
import sys
from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process that is in RAM now, including mapped files; without /proc, the peak so far."""
    return _kib_field(Path("/proc/self/status"), "VmRSS:") or _peak_from_rusage()


def peak_rss_bytes() -> int:
    """The peak memory of this process in bytes."""
    # getrusage would include the parent's memory before exec
    return _kib_field(Path("/proc/self/status"), "VmHWM:") or _peak_from_rusage()


def _kib_field(file: Path, name: str) -> int | None:
    """A field of a file in /proc that is given in KiB, in bytes; None if there is none."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _peak_from_rusage() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def warm_page_cache(path: Path) -> None:
    """Read a file once, so that later measurements do not include the disk."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def available_bytes() -> int | None:
    """Memory that new processes can use without swapping; None if unknown."""
    return _kib_field(Path("/proc/meminfo"), "MemAvailable:")


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left within the container's memory limit (cgroup v2 or v1); None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = int((root / limit).read_text())
            if most < 1 << 60:  # without a limit, v1 has a number near 2^63 and v2 "max"
                held = int((root / used).read_text()) - _reclaimable((root / used).with_name("memory.stat"))
                return max(0, most - held)
        except (OSError, ValueError):
            continue
    return None


def free_memory() -> int | None:
    """Bytes that this process can still use, of the machine and of its container; None if unknown."""
    return min(filter(None, (available_bytes(), memory_limit())), default=None)


def _reclaimable(statistics: Path) -> int:
    """Bytes of a container's memory that hold pages of files and are given up when needed."""
    for line in statistics.read_text().splitlines() if statistics.is_file() else ():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def cpu_model() -> str:
    """The vendor's name for this CPU, as far as the system knows it."""
    return _cpuinfo("model name") or platform.processor() or "unknown CPU model"


def cpu_flags() -> frozenset[str]:
    """Instruction sets by their Linux names (``avx2``, ``asimddp``); empty if unknown."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features") or "").split())


def _cpuinfo(field: str) -> str | None:
    """A field of the first processor in /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next(
        (line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), None
    )
