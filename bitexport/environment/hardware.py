"""CPU, threads, memory and disk, and how much of them a container may use."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path

from bitexport.environment.check import Check, gib
from bitexport.system.machine import available_bytes, cpu_flags, cpu_model, memory_limit

#: Bytes per parameter in float32 training: the parameter, its gradient, and AdamW's two moments.
TRAINING_BYTES = 16
#: Bytes per parameter on disk in a checkpoint to resume from: the parameter and the two moments.
CHECKPOINT_BYTES = 12
LITTLE_MEMORY = 2 << 30
LITTLE_DISK = 5 << 30


def check_cpu() -> list[Check]:
    flags = cpu_flags()
    fast = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16",
            "amx_int8": "AMX", "asimddp": "dotprod", "i8mm": "I8MM", "sve": "SVE"}  # fmt: skip
    has = [name for flag, name in fast.items() if flag in flags]
    value = f"{cpu_model()}, {platform.machine()}" + (f": {', '.join(has)}" if has else "")
    meaning = "Ternary models run on it; see `kernels` for which of its instructions they use."
    if platform.machine() in ("x86_64", "AMD64") and flags and "avx2" not in flags:
        advice = "use a CPU from 2015 or later; in a virtual machine, expose the host's CPU (`-cpu host`)"
        return [Check("cpu", f"{value}, no AVX2", "warning", meaning, advice)]
    return [Check("cpu", value, "ok", meaning)]


def check_threads() -> list[Check]:
    from bitexport.runtime.ggml import processors
    from bitexport.runtime.threads import cpu_quota, default_threads

    usable, machine, chosen = processors(), os.cpu_count() or 1, default_threads()
    parts = [f"{chosen} by default", f"{usable} of {machine} hardware threads"]
    meaning = (
        "One thread per core is fastest: a core's hardware threads share its execution units and its memory."
    )
    quota = cpu_quota()
    if quota is not None and quota < usable:
        parts.append(f"{quota} allowed in this container")
        meaning += " The container's limit is respected."
    return [Check("threads", ", ".join(parts), "ok", meaning)]


def check_memory(available: int | None = None, left: int | None = None) -> list[Check]:
    """Available memory.

    Args:
        available: bytes that the machine has available; looked up if None.
        left: bytes left under the container's limit; looked up if None.
    """
    available = available_bytes() if available is None else available
    left = memory_limit() if left is None else left
    meaning = "Converting needs little; running a model needs about the size of its file."
    if available is None:
        return [Check("memory", "unknown on this system", "ok", meaning)]
    value, usable = f"{gib(available)} available", available
    if left is not None and left < available:
        value, usable = f"{gib(left)} left in the container, {gib(available)} on the machine", left
    millions = usable / TRAINING_BYTES / 1e6
    meaning += (
        f" Training in float32 takes {TRAINING_BYTES} bytes per parameter, plus activations: at most "
        f"{millions:,.0f} million parameters here, not counting 4 bytes for each of the teacher's."
    )
    if usable < LITTLE_MEMORY:
        advice = "close other programs, raise the container's limit, or use a larger machine"
        return [Check("memory", value, "warning", meaning, advice)]
    return [Check("memory", value, "ok", meaning)]


def check_disk(places: dict[str, Path] | None = None) -> list[Check]:
    """Free space where results go and where temporary files go."""
    if places is None:
        places = {"disk here": Path.cwd(), "disk for temporary files": Path(tempfile.gettempdir())}
    meanings = {
        "disk here": f"A checkpoint to resume training from takes {CHECKPOINT_BYTES} bytes per parameter; a "
        "GGUF file takes a quarter of a byte, or 2 bytes in the embeddings.",
    }
    checks = []
    for name, place in places.items():
        meaning = meanings.get(name, "`doctor CKPT` converts into it; TMPDIR chooses another folder.")
        free = shutil.disk_usage(place).free
        value = f"{gib(free)} free in {place}"
        if not os.access(place, os.W_OK):
            checks.append(
                Check(name, f"{value}, not writable", "warning", meaning, "work in a writable folder")
            )
        elif free < LITTLE_DISK:
            advice = "free some space, or use a folder on another disk"
            checks.append(Check(name, value, "warning", meaning, advice))
        else:
            checks.append(Check(name, value, "ok", meaning))
    return checks
