"""What this process takes of the machine, and the page cache."""

from __future__ import annotations

import platform
import sys
from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process that is in RAM now, mapped files among it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # no present value without /proc
    return peak if sys.platform == "darwin" else peak * 1024


def peak_rss_bytes() -> int:
    """The most memory that this process ever held, in bytes."""
    try:
        # getrusage would count what the parent held before the exec
        with Path("/proc/self/status").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def warm_page_cache(path: Path) -> None:
    """Read a file once, so that what follows does not measure the disk."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def available_bytes() -> int | None:
    """Memory that new processes can have without swapping; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the container's limit leaves (cgroup v2, or v1); None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = int((root / limit).read_text())
            if most < 1 << 60:  # v1 writes no limit as a number near 2^63, v2 as "max"
                return max(0, most - int((root / used).read_text()))
        except (OSError, ValueError):
            continue
    return None


def old_cpu_quota(root: Path = Path("/sys/fs/cgroup/cpu")) -> int | None:
    """Processors that a container under cgroup v1 may keep busy, rounded up; None without a limit."""
    try:
        quota, period = (int((root / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return max(1, -(-quota // period)) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cpu_model() -> str:
    """What the maker calls this CPU, as far as the system tells."""
    return _cpuinfo("model name") or platform.processor() or "CPU of an unknown model"


def cpu_flags() -> frozenset[str]:
    """Instruction sets by Linux' names (``avx2``, ``asimddp``); empty where the system does not tell."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features") or "").split())


def _cpuinfo(field: str) -> str | None:
    """The first processor's."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next(
        (line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), None
    )
