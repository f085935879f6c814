"""What this process takes of the machine, and the page cache."""

from __future__ import annotations

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
